# Several runs of pytest: all that they print, and one closing line for all of them.
{ print; fflush() }
/ in [0-9.]+s( \([0-9:]+\))?( =+)?$/ {
    for (i = 2; i <= NF; i++) {
        what = $i
        gsub(/[,=]/, "", what)
        sub(/^errors$/, "error", what)
        if ($(i - 1) ~ /^[0-9]+$/ && what ~ /^(failed|passed|skipped|error|xfailed|xpassed)$/) count[what] += $(i - 1)
        if ($(i - 1) == "in") seconds += $i
    }
}
END {
    split("failed passed skipped xfailed xpassed error", order, " ")
    for (i = 1; i <= 6; i++) if (order[i] in count) line = line (line ? ", " : "") count[order[i]] " " order[i]
    if (line) printf "%s in %.2fs\n", line, seconds
}
