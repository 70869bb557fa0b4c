"""A run to look at: `sheet.make_sheet` draws a contact sheet, `page.write_report` writes an offline page with a gallery of all regions (`gallery`).

Left to others: judging a run (`rlabel.evaluation`).
"""
