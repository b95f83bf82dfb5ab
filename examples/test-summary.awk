# Passes the output of `cargo test -- --show-output` through, without what passing tests print
# except what they left out; ends with that list, each failure once more in a few lines, and the
# sums. Fails if a test or cargo failed, or nothing ran.

function failure(name) { names[++bad] = name; lines = panics = traced = 0; telling = 1 }
# The first lines of a failure: of its first panic and its last, or of whatever it says.
function tell(line) {
    if (line ~ /panicked at /) {
        if (panics++ < 2) first[bad] = panics > 1 ? texts[bad] : ""
        texts[bad] = ""
        lines = traced = 0
    }
    if (line ~ /^stack backtrace:/) traced = 1
    if (traced || line == "" || lines++ >= 5) return
    texts[bad] = texts[bad] "    " substr(line, 1, 300) "\n"
}

# The last line of input is `cargo: <exit code>`.
/^cargo: / { code = $2; next }
/^successes:$/ { quiet = 1 }
/^failures:$/ || /^test result:/ { quiet = telling = 0 }
/^ +(Running|Doc-tests|Compiling|Finished) / { telling = total = 0 }
# What libtest says of a test that failed.
!quiet && /^---- .* stdout ----$/ { failure(substr($0, 6, length($0) - 17)); print; next }
telling { tell($0) }
/^running [0-9]+ tests?$/ { running = 1; telling = 0 }
# A program that a signal ended lists no failures: its last lines are all there is.
!quiet && running && /^error: (test|doctest) failed/ {
    failure("a test program ended before its tests:" substr($0, index($0, ",") + 1))
    for (i = total - 4; i < total; i++) if (i >= 0) tell(last[i % 4])
    lines = running = 0
}
# What cargo says of its own: a crate that does not compile, a package that cannot be had.
!quiet && !running && !telling && /^error/ && !/^error: ((doc)?test failed|[0-9]+ targets? failed)/ {
    failure("cargo")
    tell($0)
}
{ last[total++ % 4] = $0 }

/^left out:/ { if (!($0 in seen)) { seen[$0] = 1; left[++lefts] = $0 }; next }
/^test result:/ { passed += $4; failed += $6; ignored += $8; running = 0 }
!quiet { print; fflush() }

END {
    for (i = 1; i <= lefts; i++) print left[i]
    if (ignored) print ignored " ignored"
    for (i = 1; i <= bad && i <= 12; i++) printf "failed: %s\n%s%s", names[i], first[i], texts[i]
    if (bad > 12) print "failed: " bad - 12 " more"
    print passed + 0 " passed, " failed + 0 " failed"
    exit code > 0 || failed > 0 || passed == 0
}
