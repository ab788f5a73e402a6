"""Put every table and figure under outputs into one PDF and one zip for a paper: outputs/report/."""

import re
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from fpdf import FPDF
from fpdf.fonts import FontFace
from matplotlib import get_data_path
from pypdf import PdfWriter

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "outputs").resolve()
SIZE, SMALLEST = 9.0, 4.5  # of letters, in points: a wide table has smaller ones


def typeset(markdown: Path) -> Path:
    """A table's Markdown as a PDF beside it: the caption, and the table across a page turned sideways."""
    blocks = markdown.read_text().strip().split("\n\n")
    texts = [block for block in blocks if not block.startswith("|")]
    lines = [line for block in blocks if block.startswith("|") for line in block.splitlines()]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [[re.sub("</?u>", "--", re.sub("</?(small|b)>", "", cell)) for cell in row] for row in rows]
    rows = [row for row in rows if not all(re.fullmatch(":?-+:?", cell) for cell in row)]
    pdf = FPDF(orientation="landscape")
    for style, file in {"": "DejaVuSans.ttf", "B": "DejaVuSans-Bold.ttf"}.items():
        pdf.add_font("DejaVu", style, Path(get_data_path()) / "fonts" / "ttf" / file)
    pdf.set_font("DejaVu", size=SIZE)
    pdf.add_page()
    pdf.multi_cell(0, None, "\n".join(texts[:1]), align="L", markdown=True, new_x="LMARGIN", new_y="NEXT")
    pdf.ln()
    columns = [[word for cell in column for word in cell.split()] for column in zip(*rows, strict=True)]
    widths = [max(map(pdf.get_string_width, words), default=0) * 1.35 + 2 for words in columns]
    pdf.set_font_size(max(SMALLEST, min(SIZE, SIZE * pdf.epw / sum(widths))))
    look = {"markdown": True, "text_align": "LEFT", "align": "LEFT", "line_height": pdf.font_size * 1.4}
    look |= {"borders_layout": "SINGLE_TOP_LINE", "headings_style": FontFace(emphasis="BOLD")}
    with pdf.table(rows, col_widths=tuple(widths), width=min(pdf.epw, sum(widths) * 1.3), **look):
        pass
    pdf.ln()
    pdf.set_font_size(7)
    pdf.multi_cell(0, None, "\n".join(texts[1:]), align="L", markdown=True)
    to = markdown.with_name(f"{markdown.stem}_table.pdf")
    pdf.output(str(to))
    return to


if __name__ == "__main__":
    for markdown in (OUTPUTS / "tables").glob("*.md"):
        if "\n|" in f"\n{markdown.read_text()}":  # notes beside a table have none
            typeset(markdown)
    files = [file for kind in ("tables", "figures") for file in sorted((OUTPUTS / kind).glob("*"))]
    files = [file for file in files if file.suffix in (".tex", ".csv", ".pdf", ".png")]
    if not files:
        print("There is no table or figure under outputs yet; make table1_las_at makes one.")
        sys.exit()
    (OUTPUTS / "report").mkdir(exist_ok=True)
    with PdfWriter() as pages, ZipFile(OUTPUTS / "report" / "dynamic-at.zip", "w", ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"{file.parent.name}/{file.name}")
        for file in sorted((file for file in files if file.suffix == ".pdf"), key=lambda file: file.name):
            pages.append(file, outline_item=file.stem)
        pages.write(OUTPUTS / "report" / "dynamic-at.pdf")
    print(f"{len(files)} files are in outputs/report/dynamic-at.zip, and their pages in outputs/report/dynamic-at.pdf.")
