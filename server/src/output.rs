//! Writing results to standard output.

use std::io::{ErrorKind, Write};

use kvstored_core::{Error, Result};
use serde::Serialize;

/// Writes text. A reader that went away (`| head`) is no failure.
pub fn emit(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::from_io(error, "output can't be written"))
        }
        _ => Ok(()),
    }
}

/// Writes a value as indented JSON.
pub fn emit_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::internal(error.to_string()))?;
    emit(&(text + "\n"))
}
