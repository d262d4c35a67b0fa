"""The colors of all plots: the palette of Okabe and Ito."""

BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PINK = "#0072B2", "#D55E00", "#CC79A7"
GRAY = "#777777"

COLORS = (BLACK, ORANGE, SKY_BLUE, GREEN, BLUE, VERMILION, PINK)
"""Colors that people with any color vision can tell apart."""
