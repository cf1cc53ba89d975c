"""Labels of single steps: process supervision, from whoever can tell."""

# Who says so: `LabelledLine.source`.
SOURCES = {
  "checked": "the domain's rules, and its verdict on finished lines",
  "tree_q": "the search's Q of the candidates that it visited",
  "rollouts_soft": "the share of roll-outs from the step that are solved",
  "rollouts_hard": "whether any roll-out from the step is solved",
  "binary_search": "roll-outs that close in on the first wrong step",
  "judge": "the network itself, asked in words",
  "human": "people",
  "injected": "whoever put a mistake into a line that was right",
  "consensus": "two sources, where they agree",
}
