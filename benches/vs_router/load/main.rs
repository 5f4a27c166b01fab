//! Both ends of a proxy under load: instances that answer at once, and clients that count.
//!
//! `run.py` starts it once for the instances and once for each measurement; every result is a line of JSON.
#![allow(missing_docs)] // a tool for developers
#![allow(clippy::disallowed_methods)] // it measures real time

mod clients;
mod held;
mod http;
mod instances;

use std::io::Result;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Serve as instances of both roles until the standard input ends
    Instances {
        /// How many
        #[arg(long, default_value_t = 4)]
        count: usize,
        /// Events of an answer besides the last
        #[arg(long, default_value_t = 16)]
        events: usize,
        /// Send each event by itself, after so long
        #[arg(long)]
        event_pause_us: Option<u64>,
    },
    /// Send requests one after the other over each connection
    Drive {
        address: SocketAddr,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
        /// Bytes of a prompt
        #[arg(long, default_value_t = 2048)]
        prompt_bytes: usize,
    },
    /// Do what a proxy does, without one: a prefill and a decode, one after the other
    Direct {
        prefill: SocketAddr,
        decode: SocketAddr,
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
        #[arg(long, default_value_t = 2048)]
        prompt_bytes: usize,
    },
    /// Hold streams that have begun until the standard input has a line, then read them to their ends
    Hold {
        address: SocketAddr,
        #[arg(long, default_value_t = 10_000)]
        streams: usize,
    },
}

fn main() -> Result<()> {
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    executor.block_on(async {
        match Options::parse().what {
            What::Instances {
                count,
                events,
                event_pause_us,
            } => instances::serve(count, events, event_pause_us.map(Duration::from_micros)).await,
            What::Drive {
                address,
                connections,
                seconds,
                prompt_bytes,
            } => {
                clients::drive(
                    address,
                    connections,
                    Duration::from_secs_f64(seconds),
                    prompt_bytes,
                )
                .await
            }
            What::Direct {
                prefill,
                decode,
                seconds,
                prompt_bytes,
            } => clients::direct([prefill, decode], Duration::from_secs_f64(seconds), prompt_bytes).await,
            What::Hold { address, streams } => held::hold(address, streams).await,
        }
    })
}
