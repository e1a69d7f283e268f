//! What was measured, for people and for programs.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Plan;
use super::steps::{Figure, Step};
use crate::output::Style;
use crate::size;

/// Results by step and directory.
pub struct Report {
    dirs: Vec<String>,
    conditions: Value,
    root: bool,
    rows: Vec<Row>,
}

/// A number, and what to know of it; mostly nothing.
#[derive(Clone, Copy)]
struct Measured {
    value: f64,
    note: &'static str,
}

/// One figure in every directory, or why there is none.
struct Row {
    name: String,
    unit: &'static str,
    is_time: bool,
    cold: bool,
    values: Vec<Result<Measured, String>>,
}

impl Report {
    /// Nothing yet.
    pub fn new(dirs: &[PathBuf], plan: &Plan, root: bool) -> Report {
        Report {
            dirs: dirs.iter().map(|dir| dir.display().to_string()).collect(),
            conditions: json!({
                "size_bytes": plan.size, "files": plan.files, "threads": plan.threads,
                "seconds": plan.time.as_secs_f64(),
                "cold": if root { "posix_fadvise and drop_caches" } else { "posix_fadvise" },
            }),
            root,
            rows: Vec::new(),
        }
    }

    /// A step's results, in the order of the directories.
    pub fn add(&mut self, step: &Step, results: Vec<io::Result<Vec<Figure>>>) {
        let Some(shape) = results.iter().find_map(|result| result.as_ref().ok()) else {
            let values = results.iter().map(|result| Err(why(result))).collect();
            let (name, unit) = (step.name.to_owned(), "");
            return self.rows.push(Row { name, unit, is_time: false, cold: step.cold, values });
        };
        for (at, figure) in shape.iter().enumerate() {
            let values = results.iter().map(|result| match result {
                Ok(figures) => Ok(Measured { value: figures[at].value, note: figures[at].note }),
                Err(_) => Err(why(result)),
            });
            self.rows.push(Row {
                name: format!("{}{}", step.name, figure.suffix),
                unit: figure.unit,
                is_time: figure.is_time,
                cold: step.cold,
                values: values.collect(),
            });
        }
    }

    /// Figures that could not be had.
    pub fn failures(&self) -> usize {
        self.rows.iter().flat_map(|row| &row.values).filter(|value| value.is_err()).count()
    }

    /// Prints it.
    pub fn print(&self, style: Style) -> anyhow::Result<()> {
        if !style.json {
            let cold = match self.root {
                true => "cold: after posix_fadvise and drop_caches",
                false => "cold: after posix_fadvise; not root, so names and attributes may come from memory",
            };
            println!(
                "{} in one file, {} files of 4 KiB, {} threads, at most {} s a step; {cold}",
                size::show(self.conditions["size_bytes"].as_u64().unwrap_or_default()),
                self.conditions["files"],
                self.conditions["threads"],
                self.conditions["seconds"],
            );
        }
        let mut headings = vec!["step", "unit"];
        for (at, dir) in self.dirs.iter().enumerate() {
            headings.push(dir);
            if at > 0 {
                headings.push("ratio");
            }
        }
        let rows: Vec<Vec<String>> = self.rows.iter().map(Row::cells).collect();
        let results: Vec<Value> = self.rows.iter().map(|row| row.json(&self.dirs)).collect();
        let json = json!({ "conditions": self.conditions, "dirs": self.dirs, "results": results });
        style.print(&headings, &rows, &json)
    }
}

fn why(result: &io::Result<Vec<Figure>>) -> String {
    result.as_ref().err().map(ToString::to_string).unwrap_or_default()
}

impl Row {
    /// How many times better a value is than the first directory's.
    fn ratio(&self, value: f64) -> Option<f64> {
        let first = self.values.first()?.as_ref().ok()?.value;
        let ratio = if self.is_time { first / value } else { value / first };
        ratio.is_finite().then_some(ratio)
    }

    fn cells(&self) -> Vec<String> {
        let name = if self.cold { format!("{} (cold)", self.name) } else { self.name.clone() };
        let mut cells = vec![name, self.unit.to_owned()];
        for (at, value) in self.values.iter().enumerate() {
            match value {
                Ok(Measured { value, note }) => {
                    let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
                    cells.push(format!("{}{note}", number(*value)));
                    if at > 0 {
                        cells.push(self.ratio(*value).map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
                    }
                }
                Err(error) => {
                    cells.push(format!("failed: {error}"));
                    if at > 0 {
                        cells.push("-".to_owned());
                    }
                }
            }
        }
        cells
    }

    fn json(&self, dirs: &[String]) -> Value {
        let values: Vec<Value> = self
            .values
            .iter()
            .zip(dirs)
            .map(|(value, dir)| match value {
                Ok(Measured { value, note }) => {
                    json!({ "dir": dir, "value": value, "ratio": self.ratio(*value), "note": note })
                }
                Err(error) => json!({ "dir": dir, "error": error }),
            })
            .collect();
        json!({
            "name": self.name, "unit": self.unit, "less_is_better": self.is_time, "cold": self.cold,
            "values": values,
        })
    }
}

/// With as many digits as mean anything.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(is_time: bool, values: Vec<Result<f64, String>>) -> Row {
        let values =
            values.into_iter().map(|value| value.map(|value| Measured { value, note: "" })).collect();
        Row { name: "x".to_owned(), unit: "u", is_time, cold: true, values }
    }

    #[test]
    fn a_larger_ratio_is_better_for_times_too() {
        assert_eq!(row(false, vec![Ok(100.0), Ok(250.0)]).cells(), ["x (cold)", "u", "100", "250", "2.50"]);
        assert_eq!(row(true, vec![Ok(1.0), Ok(0.25)]).cells(), ["x (cold)", "u", "1.00", "0.25", "4.00"]);
    }

    #[test]
    fn what_was_measured_in_another_way_says_so() {
        let values = vec![Ok(Measured { value: 250.0, note: "cached" })];
        let row = Row { name: "x".to_owned(), unit: "u", is_time: false, cold: true, values };
        assert_eq!(row.cells(), ["x (cold)", "u", "250 (cached)"]);
        assert_eq!(row.json(&["/a".to_owned()])["values"][0]["note"], "cached");
    }

    #[test]
    fn what_failed_says_why() {
        let row = row(false, vec![Err("full".to_owned()), Ok(25.0)]);
        assert_eq!(row.cells(), ["x (cold)", "u", "failed: full", "25.0", "-"]);
        assert_eq!(row.json(&["/a".to_owned(), "/b".to_owned()])["values"][0]["error"], "full");
    }
}
