//! Programs of other projects: crictl and client-go drive berthd, cnitool and containerd drive
//! berth-bridge.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod crictl;
mod plugin;
