//! Tables for people, JSON for programs.

use std::io::Write;

use serde_json::Value;

/// How results are printed.
#[derive(Clone, Copy)]
pub struct Style {
    /// JSON instead of tables.
    pub json: bool,
}

impl Style {
    /// Prints rows under headings, or `json`.
    pub fn print(self, headings: &[&str], rows: &[Vec<String>], json: &Value) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{json:#}")?;
        } else {
            write!(out, "{}", table(headings, rows))?;
        }
        Ok(())
    }

    /// Prints `NAME  VALUE` lines, or `json`.
    pub fn print_fields(self, fields: &[(&str, String)], json: &Value) -> anyhow::Result<()> {
        let rows: Vec<Vec<String>> = fields.iter().map(|(k, v)| vec![(*k).to_string(), v.clone()]).collect();
        self.print(&[], &rows, json)
    }
}

/// Columns as wide as their widest cell, two spaces apart, nothing after the last.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = headings.iter().map(|h| h.to_uppercase()).collect();
    let lines = || std::iter::once(&heading).filter(|h| !h.is_empty()).chain(rows);
    let columns = lines().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| lines().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in lines() {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_blanks() {
        let rows = vec![vec!["a".into(), "bb".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&["x", "y"], &rows), "X    Y\na    bb\nccc  d\n");
    }
}
