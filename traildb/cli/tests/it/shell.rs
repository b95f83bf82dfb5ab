//! `tdb completions` and `tdb man`.

use std::fs;

use crate::support::{printed, run};

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let text = printed(&["completions", shell]);
        for word in ["make", "dump", "verify", "skip-bad-input"] {
            assert!(text.contains(word), "{shell} has no {word}");
        }
    }
    assert_eq!(run(&["completions", "cmd.com"]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_man_page() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let path = directory.path().to_str().expect("a plain path");
    printed(&["man", path]);
    let help = printed(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    let mut some = 0;
    for name in commands.filter_map(|line| line.split_whitespace().next()) {
        if name == "help" {
            continue;
        }
        let page = fs::read_to_string(directory.path().join(format!("tdb-{name}.1")));
        let page = page.unwrap_or_else(|error| panic!("tdb-{name}.1: {error}"));
        assert!(page.contains(".SH SYNOPSIS") && page.contains("Examples"), "{name}: {page}");
        some += 1;
    }
    assert!(some >= 5, "{help}");
    assert!(directory.path().join("tdb.1").exists());
    assert_eq!(run(&["man", "/no/such/directory"]).status.code(), Some(1));
}

/// Filled, an example would go on in the next one's line, and break at its hyphens.
#[test]
fn examples_in_man_pages_keep_their_lines() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    printed(&["man", directory.path().to_str().expect("a plain path")]);
    let mut examples = 0;
    for entry in fs::read_dir(directory.path()).expect("pages") {
        let path = entry.expect("a page").path();
        let page = fs::read_to_string(&path).expect("text");
        let mut filled = true;
        for line in page.lines() {
            match line {
                ".nf" | ".fi" => filled = line == ".fi",
                _ if line.starts_with("  ") => {
                    assert!(!filled, "{}: {line}", path.display());
                    examples += usize::from(line.starts_with("  tdb "));
                }
                _ => assert!(filled, "{}: {line}", path.display()),
            }
        }
    }
    assert!(examples > 20, "only {examples} examples");
}
