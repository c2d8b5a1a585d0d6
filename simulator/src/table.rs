//! CSV with a header, columns by name, and errors that say where: what inventories and traces share.

use std::fmt;
use std::io;

/// Above any real inventory or trace; a file beyond it is refused before it is held.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// A cell that is longer cannot be a name or a number, and is not quoted back either.
const CELL_BYTES_MAX: usize = 1024;

/// Why a CSV file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read, or is no CSV.
    #[error("the file cannot be read as CSV")]
    Read(#[from] csv::Error),
    /// Larger than any real one.
    #[error("line {line}: the file has more than {max} {what}")]
    TooMany {
        /// Where the bound was passed.
        line: u64,
        /// The bound.
        max: u64,
        /// Of what.
        what: &'static str,
    },
    /// A column that is needed is not in the header.
    #[error("line 1: there is no column {wanted}; the header has {found}")]
    Column {
        /// Which, and its other names.
        wanted: String,
        /// What the header has.
        found: String,
    },
    /// A cell that is not what its column holds.
    #[error("line {line}, column {column}: {found:?} is not {wanted}")]
    Cell {
        /// Counted from 1, the header included.
        line: u64,
        /// Its name in the header.
        column: String,
        /// What is there, cut to 64 characters.
        found: String,
        /// What should be.
        wanted: String,
    },
    /// A row that contradicts another.
    #[error("line {line}: {problem}")]
    Row {
        /// Counted from 1, the header included.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// A file is as it is: reading it again gives the same.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

/// A file being read, row by row.
pub(crate) struct Table<R> {
    reader: csv::Reader<io::Take<R>>,
    header: Vec<String>,
    record: csv::StringRecord,
    line: u64,
}

/// A column that the file has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column(usize);

impl<R: io::Read> Table<R> {
    /// Reads the header.
    pub(crate) fn open(file: R) -> Result<Self, Error> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file.take(FILE_BYTES_MAX));
        let header = reader.headers()?.iter().map(|name| name.trim_start_matches('\u{feff}').to_owned()).collect();
        Ok(Self { reader, header, record: csv::StringRecord::new(), line: 1 })
    }

    /// The column with one of these names, if there is one.
    pub(crate) fn find(&self, names: &[&str]) -> Option<Column> {
        names.iter().find_map(|name| self.header.iter().position(|column| column == name)).map(Column)
    }

    /// The column with one of these names.
    pub(crate) fn need(&self, names: &[&str]) -> Result<Column, Error> {
        self.find(names)
            .ok_or_else(|| Error::Column { wanted: names.join(" or "), found: cut(&self.header.join(", ")) })
    }

    /// Goes on to the next row; `false` at the end.
    pub(crate) fn advance(&mut self) -> Result<bool, Error> {
        let more = self.reader.read_record(&mut self.record)?;
        if more {
            self.line = self.record.position().map_or(self.line + 1, csv::Position::line);
        } else if self.reader.get_ref().limit() == 0 {
            return Err(Error::TooMany { line: self.line, max: FILE_BYTES_MAX, what: "bytes" });
        }
        Ok(more)
    }

    /// The line of the present row.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// A cell of the present row; empty where the row is too short for it.
    pub(crate) fn text(&self, column: Column) -> &str {
        self.record.get(column.0).unwrap_or_default()
    }

    /// A cell of the present row, as whatever `parse` makes of it.
    pub(crate) fn parse<T>(
        &self,
        column: Column,
        wanted: impl fmt::Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let text = self.text(column);
        let value = if text.len() <= CELL_BYTES_MAX { parse(text) } else { None };
        value.ok_or_else(|| Error::Cell {
            line: self.line,
            column: self.header.get(column.0).cloned().unwrap_or_default(),
            found: cut(text),
            wanted: wanted.to_string(),
        })
    }

    /// A whole number within bounds.
    pub(crate) fn whole(&self, column: Column, bounds: std::ops::RangeInclusive<u64>) -> Result<u64, Error> {
        self.parse(column, format_args!("a whole number from {} to {}", bounds.start(), bounds.end()), |text| {
            text.parse().ok().filter(|number| bounds.contains(number))
        })
    }

    /// A number that may have a fraction, within bounds.
    pub(crate) fn number(&self, column: Column, bounds: std::ops::RangeInclusive<f64>) -> Result<f64, Error> {
        self.parse(column, format_args!("a number from {} to {}", bounds.start(), bounds.end()), |text| {
            text.parse().ok().filter(|number: &f64| number.is_finite() && bounds.contains(number))
        })
    }

    /// An error about the present row.
    pub(crate) fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::Row { line: self.line, problem: problem.into() }
    }
}

/// What is quoted back of somebody else's text.
fn cut(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 64;
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
