"""What each plot shows and how to read it, for pages and papers; plain text, in the order of the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    title: str
    body: str
    instead: str  # for those who cannot see it: what kind of picture it is, and where its numbers are
    unfinished: str = ""  # how unfinished cells look, said where there are any


CAPTIONS = {
    "accuracy": Caption(
        "Top-1 accuracy at the last epoch",
        "One panel a pair, one line a method: every dot is a run (one seed), the upright tick is their mean. The "
        "vertical lines are the means of the Teacher and Student rows. Open markers are published numbers of the same "
        "protocol, one shape a source; those of a best epoch are left out, since this axis is the last epoch.",
        "Dot plot of every run's accuracy; the means are in the results table, the runs in the section on cells.",
    ),
    "gain": Caption(
        "Gain over the Student row",
        "Mean difference to the student trained from labels alone, on the same seeds; below it, where there are "
        "several seeds, half the width of its 95 % interval, which is for all methods of the pair at once. Bold where "
        "that interval leaves out zero. On the right the mean over pairs with its interval.",
        "Heat map of the gain of each method on each pair; the means over pairs are in the table over all pairs.",
        "Grey cells are unfinished; a mean over other pairs than those of the rest is pale.",
    ),
    "difference": Caption(
        "Measured minus published",
        "Only numbers of the same protocol are subtracted, one panel a source. Blue is above the published number, red "
        "below. Bold: beyond both 0.5 points and twice the standard deviation over seeds. Grey: not published.",
        "Heat map of differences to published numbers; the same differences are in the tables above.",
        "Hatched: published, but not measured here.",
    ),
    "curves": Caption(
        "Accuracy over epochs",
        "On the test set, or, where the axis says so, on validation images held out of the training images. Means over "
        "seeds (the first ten, if there are more); bands reach from the lowest to the highest seed. Dotted "
        "verticals: the learning rate falls, where all rows of a pair agree on when. What lies below the range of the "
        "last two thirds is cut off. Curves of 50 epochs and more are running medians over a 25th of the epochs, since "
        "single epochs scatter by points while the learning rate is high (the last point is the last epoch's own "
        "value), and are drawn twice: left all methods from the start, then, group by group beside the Student row, "
        "the end from the first fall of the learning rate on.",
        "Line plot of accuracy over epochs; the last values are in the results table.",
    ),
    "cost": Caption(
        "Accuracy against training cost",
        "Means over seeds, with a line from the lowest to the highest accuracy. Time is what a run takes of a CPU core "
        "or of a whole GPU by itself, evaluation included: its own part, and the whole of what it shared. The grey "
        "steps join the methods that nothing cheaper beats; wall times and several devices are not joined.",
        "Scatter plot of accuracy over training time; both are listed for every run in the section on cells.",
    ),
    "terms": Caption(
        "Loss terms, and how hard each pulls at the logits",
        "One pair; means over seeds (the first ten). Above, the weighted terms of the loss as they enter its sum. "
        "Below, where the runs recorded it, the norm of each term's gradient with respect to the student's logits, "
        "once an epoch (running median). Every axis is logarithmic and common to all panels of its kind: a line three "
        "decades lower moves the logits a thousand times less.",
        "Small line plots of loss terms and gradient norms over epochs, one method each; the numbers are in the curve "
        "of each run's result.json.",
    ),
}
