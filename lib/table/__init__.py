"""A paper's table as a value, from its file in params/tables.

table = open_table("table4_dgad", Parameters(scale="quick"))
"""

from lib.table.core import Cell, Table, show_path
from lib.table.opening import open_table
from lib.table.rows import Block, Row, TableFile, Trained

__all__ = ["Block", "Cell", "Row", "Table", "TableFile", "Trained", "open_table", "show_path"]
