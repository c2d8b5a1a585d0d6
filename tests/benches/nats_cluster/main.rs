//! What a cluster on NATS does, in processes of its own: nats-server, cells, directories, managers that answer at
//! once and keep their VMs in memory, and whoever asks, all on this machine. Where there is a raw limit, a bare client of
//! the same server is measured in the same run.
//!
//!   rate     jobs a second, how long one takes, and what each process spends on it
//!   fleet    as a fleet grows to 1,000,000 VMs: takeover after `kill -9`, planned moves, a new directory
//!   idle     what a cluster without work asks of its server, with 5 and with 50 cells
//!
//! All of them, one after the other, if none is named (`cargo bench -p cellbus-tests --bench nats_cluster -- rate`).
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and starts tasks")]

mod bare;
mod fleet;
mod idle;
mod rate;

use anyhow::{Result, ensure};
use cellbus_bus::allocator::{self, Allocator};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::cluster::Shape;

/// As in the `cellbus` binary, so that the yardstick is no shorter.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Managers of this process are as quick as they can be, and there is room for every VM.
fn shape(managers: usize, hosts_per_manager: usize, shards: u16) -> Shape {
    Shape { managers, hosts_per_manager, latency: "none", managers_durable: false, shards, ..Shape::default() }
}

fn main() -> Result<()> {
    const PARTS: [&str; 3] = ["rate", "fleet", "idle"];
    allocator::keep_freed_pages();
    if left_out() {
        return Ok(());
    }
    // Cargo adds `--bench` to what it is given.
    let mut named: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if named.is_empty() {
        named = PARTS.map(str::to_owned).to_vec();
    }
    for part in &named {
        ensure!(PARTS.contains(&part.as_str()), "there is no part {part}; the parts are {}", PARTS.join(", "));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for part in named {
            match part.as_str() {
                "rate" => rate::run().await?,
                "fleet" => fleet::run().await?,
                _ => idle::run().await?,
            }
        }
        Ok(())
    })
}
