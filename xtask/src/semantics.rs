//! Whether every clause of docs/SEMANTICS.md names a test that shows it, and whether these tests exist.
//!
//! A clause is a numbered item, or a row of a table with a column `tests`. A test is named in backquotes: a file (by its path, or
//! by its name alone where the path stands somewhere in the document), and behind it functions in it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The document, from the workspace's root.
const DOCUMENT: &str = "docs/SEMANTICS.md";
/// Words in the name of a test function, at least; other names in backquotes are of something else.
const WORDS_MIN: usize = 4;

/// One promise.
#[derive(Debug, PartialEq)]
struct Clause {
    /// For people: section and number, or the row's first cell.
    name: String,
    line: usize,
    text: String,
}

/// Fails with every clause that shows nothing.
pub fn check() -> Result<()> {
    let text = std::fs::read_to_string(DOCUMENT).with_context(|| format!("{DOCUMENT} cannot be read"))?;
    let problems =
        problems(&text, &|path| std::fs::read_to_string(path).ok(), &|path| Path::new(path).is_dir());
    let clauses = clauses(&text).len();
    if problems.is_empty() {
        eprintln!("{clauses} clauses, each shown by a test");
        return Ok(());
    }
    bail!("{DOCUMENT}: {} of {clauses} clauses are not shown:\n{}", problems.len(), problems.join("\n"))
}

fn problems(text: &str, read: &dyn Fn(&str) -> Option<String>, is_dir: &dyn Fn(&str) -> bool) -> Vec<String> {
    let files = files(text);
    let mut problems = Vec::new();
    let clauses = clauses(text);
    if clauses.is_empty() {
        return vec!["there is no clause at all".to_owned()];
    }
    for clause in clauses {
        let mut tests = 0;
        let mut wrong = Vec::new();
        let mut source: Option<(String, String)> = None;
        for quoted in quoted(&clause.text) {
            if quoted.ends_with('/') && quoted.contains("src/") {
                tests += usize::from(is_dir(quoted));
            } else if quoted.ends_with(".rs") {
                source = match resolve(quoted, &files).and_then(|path| Some((path.clone(), read(path)?))) {
                    Some((path, code)) if has_tests(&code) => {
                        tests += 1;
                        Some((path, code))
                    }
                    Some((path, _)) => {
                        wrong.push(format!("{path} has no test"));
                        None
                    }
                    None => {
                        wrong.push(format!("there is no {quoted}"));
                        None
                    }
                };
            } else if is_test_name(quoted) {
                match &source {
                    Some((_, code)) if code.contains(&format!("fn {quoted}(")) => {}
                    Some((path, _)) => wrong.push(format!("{path} has no {quoted}")),
                    None => wrong.push(format!("{quoted} has no file before it")),
                }
            }
        }
        if tests == 0 && wrong.is_empty() {
            wrong.push("no test is named".to_owned());
        }
        if !wrong.is_empty() {
            problems.push(format!("line {}, {}: {}", clause.line, clause.name, wrong.join("; ")));
        }
    }
    problems
}

/// Numbered items and rows, with all their lines.
fn clauses(text: &str) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = Vec::new();
    let (mut section, mut in_table, mut in_item) = (String::new(), false, false);
    for (at, line) in text.lines().enumerate() {
        let line_number = at + 1;
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
            (in_table, in_item) = (false, false);
        } else if line.starts_with('|') {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if cells.last() == Some(&"tests") {
                in_table = true;
            } else if in_table && !line.starts_with("| ---") {
                let name = format!("{section}, {}", cells.first().copied().unwrap_or_default());
                let text = cells.last().copied().unwrap_or_default().to_owned();
                clauses.push(Clause { name, line: line_number, text });
            }
        } else if let Some((number, rest)) =
            line.split_once(". ").filter(|(number, _)| number.parse::<u32>().is_ok())
        {
            in_item = true;
            clauses.push(Clause {
                name: format!("{section} {number}"),
                line: line_number,
                text: rest.to_owned(),
            });
        } else if line.starts_with("   ") && in_item {
            let last = clauses.last_mut().expect("an item is open");
            last.text.push('\n');
            last.text.push_str(line);
        } else {
            (in_table, in_item) = (false, false);
        }
    }
    clauses
}

/// Everything in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Paths of source files in the document, by their names.
fn files(text: &str) -> BTreeMap<&str, Vec<String>> {
    let mut files: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for path in quoted(text).filter(|quoted| quoted.ends_with(".rs")) {
        if let Some((_, name)) = path.rsplit_once('/') {
            let paths = files.entry(name).or_default();
            if !paths.iter().any(|known| known == path) {
                paths.push(path.to_owned());
            }
        }
    }
    files
}

/// The path that a reference means; `None` where it could mean none or several.
fn resolve<'a>(reference: &'a str, files: &'a BTreeMap<&str, Vec<String>>) -> Option<&'a String> {
    let name = reference.rsplit_once('/').map_or(reference, |(_, name)| name);
    let paths = files.get(name)?;
    if reference.contains('/') {
        paths.iter().find(|path| *path == reference)
    } else if paths.len() == 1 {
        paths.first()
    } else {
        None
    }
}

fn has_tests(code: &str) -> bool {
    ["#[test]", "#[tokio::test", "#[cfg(test)]"].iter().any(|mark| code.contains(mark))
}

fn is_test_name(quoted: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    quoted.split('_').all(is_word) && quoted.split('_').count() >= WORDS_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "\
# Promises

## First

1. It holds. `a/tests/one.rs`
2. It holds too, also with `fcntl`,
   in two lines. `one.rs` `a_test_that_shows_it`

## Table

| what | tests |
| --- | --- |
| races | `a/src/two.rs` `b_test_that_shows_it` |

Text with `no/clause.rs`.
";

    fn told(text: &str) -> Vec<String> {
        let read = |path: &str| match path {
            "a/tests/one.rs" => Some("#[test]\nfn a_test_that_shows_it() {}".to_owned()),
            "a/src/two.rs" => {
                Some("#[cfg(test)] mod tests { #[test]\nfn b_test_that_shows_it() {} }".to_owned())
            }
            "a/src/none.rs" => Some("fn main() {}".to_owned()),
            _ => None,
        };
        problems(text, &read, &|path| path == "a/src/")
    }

    #[test]
    fn a_sound_document_passes_and_each_flaw_is_told_with_its_line() {
        assert_eq!(told(SOUND), Vec::<String>::new());
        let flaws = [
            ("`a/tests/one.rs`\n", "\n", "line 5, First 1: no test is named"),
            ("`a/tests/one.rs`\n2.", "`a/tests/gone.rs`\n2.", "there is no a/tests/gone.rs"),
            (
                "`a_test_that_shows_it`",
                "`a_test_that_does_not`",
                "a/tests/one.rs has no a_test_that_does_not",
            ),
            ("`a/src/two.rs` ", "", "line 13, Table, races: b_test_that_shows_it has no file"),
            ("`a/src/two.rs` `b_test_that_shows_it`", "`a/src/none.rs`", "a/src/none.rs has no test"),
            ("`a/src/two.rs` `b_test_that_shows_it`", "by thought", "no test is named"),
        ];
        for (from, to, told_so) in flaws {
            let spoilt = SOUND.replacen(from, to, 1);
            assert_ne!(spoilt, SOUND);
            let problems = told(&spoilt);
            assert!(problems.iter().any(|problem| problem.contains(told_so)), "{told_so}: {problems:?}");
        }
        assert_eq!(told("# Nothing\n").len(), 1);
    }

    #[test]
    fn a_name_that_may_mean_two_files_is_not_guessed() {
        let both = SOUND.replace("`no/clause.rs`", "`b/tests/one.rs`");
        assert!(told(&both)[0].contains("there is no one.rs"), "{:?}", told(&both));
    }
}
