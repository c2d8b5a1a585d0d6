//! What tests across crates share. The tests themselves lie in `tests/tests/`:
//!
//! - `repository`: what the compiler and clippy can't check of the code as a whole;
//! - `cli`: the scripts in `tests/cli/`, each a session with the real binary and what it prints;
//! - `cluster`: the whole path through `cellbus up`, by the commands that users have;
//! - `bad_input`: what must be refused over HTTP, each with its code;
//! - `data_dir`: directories that are in use, damaged, not writable, nearly full;
//! - `kills`: `kill -9` under load, over and over the same data;
//! - `operators`: managers that misbehave: parked jobs, operations that outlive their cell, a vCenter that forgets;
//! - `backup`: a cluster under load is backed up, its bus lost, and restored on another, with other shards;
//! - `nats_cluster`: cells, directories and managers as processes of their own on a real NATS server, killed under load;
//! - `kafka_cluster`, `kafka_producers`: the same on a real Kafka broker, and its producers;
//! - `nats_deploy`: the three servers of `ops/deploy/nats/` as shipped, with tenants that are kept apart;
//! - `nats_full`: a full stream is a refusal, and loses nothing;
//! - `nats_load`: `cellbus load` over NATS;
//! - `nats_producers`: producers in other languages on a real cluster;
//! - `nats_scale`, `scale`: the autoscaler with cells that are processes, on NATS and in one process;
//! - `otlp`: traces of jobs, at a collector of the test's own;
//! - `security`: TLS, tokens and certificates of members, as `ops/docs/security.md` says to make them;
//! - `alerts`: the rules of `ops/alerts/`, with promtool, and with a real Prometheus and Alertmanager over a real cluster;
//! - `dashboards`: the queries of `ops/dashboards/`;
//! - `deploy`: the units, manifests and configurations that `ops/` offers;
//! - `traces`: one job followed through the log;
//! - `upgrade`: two builds in one cluster, replaced one by one under load.

// Edges: real processes, sockets and clocks stand on this side of the code under test.
#![expect(clippy::disallowed_methods, reason = "tests drive real processes in real time")]

pub mod binary;
pub mod books;
pub mod cluster;
pub mod kills;
pub mod load;
pub mod process;
pub mod producers;
pub mod prometheus;
pub mod promql;
pub mod proxy;
pub mod script;
pub mod server;
pub mod workspace;
