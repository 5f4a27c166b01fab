//! What the checks found.

use std::fmt;

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The tier did what the contract says.
    Passed,
    /// It did not, and how.
    Failed(String),
    /// The check doesn't apply, and why.
    Skipped(String),
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What the contract says, in a few words.
    pub check: &'static str,
    /// How it ended.
    pub outcome: Outcome,
}

/// All checks, in the order in which they ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The checks.
    pub rows: Vec<Row>,
}

impl Report {
    pub(crate) fn push(&mut self, check: &'static str, outcome: Outcome) {
        self.rows.push(Row { check, outcome });
    }

    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// What failed.
    pub fn failures(&self) -> impl Iterator<Item = &Row> {
        let failed = |row: &&Row| matches!(row.outcome, Outcome::Failed(_));
        self.rows.iter().filter(failed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            match &row.outcome {
                Outcome::Passed => writeln!(formatter, "pass  {}", row.check)?,
                Outcome::Failed(why) => writeln!(formatter, "FAIL  {}: {why}", row.check)?,
                Outcome::Skipped(why) => writeln!(formatter, "skip  {}: {why}", row.check)?,
            }
        }
        write!(
            formatter,
            "{} checks, {} failed",
            self.rows.len(),
            self.failures().count()
        )
    }
}
