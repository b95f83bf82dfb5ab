# Passes the output of `cargo test -- --show-output` through, without what passing tests print
# except what they left out; ends with that list and the sums. Fails if a test or cargo failed, or nothing ran.

/^successes:$/ { quiet = 1 }
/^failures:$/ || /^test result:/ { quiet = 0 }
# The last line of input is `cargo: <exit code>`.
/^left out:/ { if (!($0 in seen)) { seen[$0] = 1; left[++lefts] = $0 }; next }
/^test result:/ { passed += $4; failed += $6; ignored += $8 }
/^cargo: / { code = $2; next }
!quiet { print; fflush() }

END {
    for (i = 1; i <= lefts; i++) print left[i]
    if (ignored) print ignored " ignored"
    print passed + 0 " passed, " failed + 0 " failed"
    exit code > 0 || failed > 0 || passed == 0
}
