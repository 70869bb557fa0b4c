"""A run to look at: `sheet.make_sheet` draws a contact sheet, `page.write_report` writes one offline page.

Left to others: judging a run (`rlabel.evaluation`).
"""
