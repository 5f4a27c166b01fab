//! Reading a trace line by line, in bounded memory.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use kvstored_core::{Error, Result};
use serde::Deserialize;

/// The longest accepted line.
pub const MAX_LINE_BYTES: usize = 4 << 20;
/// The most hash ids of one request: 32 million tokens in blocks of 512.
pub const MAX_IDS: usize = 65_536;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TraceRequest {
    /// When it arrived, in milliseconds since the trace's beginning.
    #[serde(rename = "timestamp")]
    pub timestamp_ms: f64,
    /// Tokens of the prompt.
    pub input_length: u64,
    /// Tokens of the answer.
    pub output_length: u64,
    /// Prefix-chained ids of the prompt's blocks.
    pub hash_ids: Vec<u64>,
}

/// Reads requests one at a time.
pub struct TraceReader {
    input: Box<dyn BufRead + Send>,
    path: PathBuf,
    line_number: u64,
    read_bytes: u64,
    total_bytes: u64,
    line: Vec<u8>,
}

impl TraceReader {
    /// Opens a trace file.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::from_io(error, format!("trace {} can't be opened", path.display()));
        let file = File::open(path).map_err(failed)?;
        let total_bytes = file.metadata().map_err(failed)?.len();
        let mut reader = Self::new(Box::new(BufReader::with_capacity(1 << 20, file)), path);
        reader.total_bytes = total_bytes;
        Ok(reader)
    }

    /// Reads from anything; `path` names it in errors.
    pub fn new(input: Box<dyn BufRead + Send>, path: &Path) -> Self {
        Self {
            input,
            path: path.to_owned(),
            line_number: 0,
            read_bytes: 0,
            total_bytes: 0,
            line: Vec::new(),
        }
    }

    /// Bytes of the file, 0 where unknown.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The next request, `None` at the end. Empty lines are skipped.
    ///
    /// Fails with `InvalidInput`, naming file, line number and reason, for a line that isn't a request.
    pub fn next_request(&mut self) -> Result<Option<TraceRequest>> {
        while self.read_line()? {
            let text = self.line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let request: TraceRequest =
                serde_json::from_slice(text).map_err(|error| self.broken(&error.to_string()))?;
            if !request.timestamp_ms.is_finite() || request.timestamp_ms < 0.0 {
                return Err(self.broken(&format!("timestamp {} is not a time", request.timestamp_ms)));
            }
            if request.hash_ids.len() > MAX_IDS {
                let ids = request.hash_ids.len();
                return Err(self.broken(&format!("{ids} hash_ids; at most {MAX_IDS} are accepted")));
            }
            return Ok(Some(request));
        }
        Ok(None)
    }

    /// Reads one line into `self.line`; `false` at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        self.line.clear();
        self.line_number += 1;
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let message = format!(
                        "trace {} line {} can't be read",
                        self.path.display(),
                        self.line_number
                    );
                    return Err(Error::from_io(error, message));
                }
            };
            if available.is_empty() {
                return Ok(!self.line.is_empty());
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = available
                .get(..end.unwrap_or(available.len()))
                .unwrap_or_default();
            if self.line.len() + part.len() > MAX_LINE_BYTES {
                return Err(self.broken(&format!("the line is longer than {MAX_LINE_BYTES} bytes")));
            }
            self.line.extend_from_slice(part);
            let consumed = part.len() + usize::from(end.is_some());
            self.input.consume(consumed);
            self.read_bytes += consumed as u64;
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    fn broken(&self, why: &str) -> Error {
        Error::invalid(format!(
            "trace {} line {}: {why}",
            self.path.display(),
            self.line_number
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstored_core::ErrorKind;
    use std::io::Cursor;

    const GOOD: &str = r#"{"timestamp": 27, "input_length": 600, "output_length": 9, "hash_ids": [0, 5]}"#;

    fn read(text: impl Into<Vec<u8>>) -> Result<Vec<TraceRequest>> {
        let mut reader = TraceReader::new(Box::new(Cursor::new(text.into())), Path::new("some.jsonl"));
        let mut requests = Vec::new();
        while let Some(request) = reader.next_request()? {
            requests.push(request);
        }
        Ok(requests)
    }

    #[test]
    fn requests_are_read_with_and_without_a_last_line_feed() {
        let requests = read(format!("{GOOD}\n\n  \r\n{GOOD}")).unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[1].hash_ids, [0, 5]);
        assert_eq!((requests[0].input_length, requests[0].output_length), (600, 9));
        assert!((requests[0].timestamp_ms - 27.0).abs() < f64::EPSILON);
        assert!(read("").unwrap().is_empty());
    }

    #[test]
    fn fields_of_other_traces_are_ignored() {
        let line = GOOD.replace("{\"timestamp\"", "{\"chat_id\": 4, \"timestamp\"");
        assert_eq!(read(line).unwrap().len(), 1);
    }

    #[test]
    fn a_broken_line_is_named_with_file_number_and_reason() {
        let many = format!("[{}]", vec!["1"; MAX_IDS + 1].join(","));
        for (line, reason) in [
            ("nonsense".to_owned(), "expected"),
            (
                GOOD.replace("\"output_length\": 9, ", ""),
                "missing field `output_length`",
            ),
            (GOOD.replace("[0, 5]", "[0, -5]"), "-5"),
            (GOOD.replace("[0, 5]", "7"), "invalid type"),
            (GOOD.replace("600", "\"long\""), "\"long\""),
            (GOOD.replace("27", "-27"), "timestamp -27 is not a time"),
            (GOOD.replace("[0, 5]", &many), "65537 hash_ids"),
            (GOOD.replace('}', ""), "EOF"),
            (format!("{GOOD} {GOOD}"), "trailing"),
            ("\u{0}\u{1}".to_owned(), "expected"),
        ] {
            let error = read(format!("{GOOD}\n{line}\n{GOOD}\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            let text = error.to_string();
            assert!(text.contains("some.jsonl line 2"), "{text}");
            assert!(text.contains(reason), "{text} should say {reason}");
        }
    }

    #[test]
    fn an_endless_line_is_refused_before_it_is_held() {
        let text = vec![b' '; MAX_LINE_BYTES + 100];
        let error = read(text).unwrap_err().to_string();
        assert!(
            error.contains("line 1") && error.contains("longer than"),
            "{error}"
        );
    }

    #[test]
    fn bytes_that_are_not_text_are_an_error() {
        assert!(read(vec![0xff, 0xfe, b'\n']).is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = TraceReader::open(Path::new("/nonexistent/trace.jsonl"))
            .err()
            .unwrap();
        assert!(error.to_string().contains("/nonexistent/trace.jsonl"), "{error}");
    }
}
