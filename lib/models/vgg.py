"""VGG (Simonyan & Zisserman 2015) for 32x32 images: batch-norm after every convolution, one linear layer."""

from collections.abc import Sequence

from torch import Tensor, nn

VGG16_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Groups of 3x3 convolution (with bias), batch-norm and ReLU; a 2x2 max-pool ends each, the linear layer all.

    `groups` lists the output channels, convolution by convolution. Five pools leave one pixel of 32x32; the mean is
    taken over the larger map that larger images leave, and a map of one pixel passes a pool unchanged.
    """

    def __init__(self, groups: Sequence[Sequence[int]] = VGG16_GROUPS, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.features, inputs = nn.Sequential(), channels
        for group in groups:
            for outputs in group:
                self.features.extend([nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()])
                inputs = outputs
            self.features.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil_mode matters to odd sizes alone
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
