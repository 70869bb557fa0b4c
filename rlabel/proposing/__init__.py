"""Regions where there are none: masks or boxes of bare pictures, without a class."""
