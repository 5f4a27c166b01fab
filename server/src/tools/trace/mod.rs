//! Traces of requests: reading them, and `kvstored trace generate`.
//!
//! A trace has one JSON object a line: `timestamp` (milliseconds), `input_length`, `output_length` (tokens) and
//! `hash_ids` (prefix-chained ids of blocks of 512 tokens).

pub mod generate;
pub mod reader;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use kvstored_core::{Error, Result};

pub use generate::Generator;
pub use reader::{TraceReader, TraceRequest};

/// `kvstored trace`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Write a trace of multi-turn conversations with shared system prompts
    Generate(GenerateArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct GenerateArgs {
    /// How many requests
    #[arg(long, default_value_t = 2000)]
    requests: u64,
    /// The same seed gives the same trace
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file to write
    #[arg(long)]
    output: PathBuf,
}

/// Runs `kvstored trace`.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Generate(args) => generate(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn generate(args: &GenerateArgs) -> Result<()> {
    let failed = |error| Error::from_io(error, format!("trace {} can't be written", args.output.display()));
    let mut output = BufWriter::new(File::create(&args.output).map_err(failed)?);
    let (mut requests, mut blocks) = (0u64, 0u64);
    for request in Generator::new(args.seed).take(usize::try_from(args.requests).unwrap_or(usize::MAX)) {
        write_request(&mut output, &request).map_err(failed)?;
        requests += 1;
        blocks += request.hash_ids.len() as u64;
    }
    output.flush().map_err(failed)?;
    eprintln!("{}: {requests} requests, {blocks} blocks", args.output.display());
    Ok(())
}

/// Writes one line of a trace.
pub fn write_request(output: &mut impl Write, request: &TraceRequest) -> std::io::Result<()> {
    write!(
        output,
        "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": {}, \"hash_ids\": [",
        request.timestamp_ms as u64, request.input_length, request.output_length
    )?;
    for (index, id) in request.hash_ids.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(output, "{separator}{id}")?;
    }
    output.write_all(b"]}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_generated_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("trace.jsonl");
        generate(&GenerateArgs {
            requests: 300,
            seed: 9,
            output: output.clone(),
        })
        .unwrap();
        let mut reader = TraceReader::open(&output).unwrap();
        let mut count = 0;
        for expected in Generator::new(9).take(300) {
            assert_eq!(reader.next_request().unwrap().unwrap(), expected);
            count += 1;
        }
        assert_eq!(reader.next_request().unwrap(), None);
        assert_eq!(count, 300);
        assert_eq!(reader.read_bytes(), reader.total_bytes());
    }

    #[test]
    fn an_unwritable_output_is_named() {
        let args = GenerateArgs {
            requests: 1,
            seed: 1,
            output: "/nonexistent/x.jsonl".into(),
        };
        assert!(
            generate(&args)
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/x.jsonl")
        );
    }
}
