//! The Container Runtime Interface, version v1, as Kubernetes 1.37 publishes it.
//!
//! Everything here is generated from `api.proto` and, for berth's own, `berth.proto`. Only `runtime/src/server` and the black-box tests name these types.

/// Messages, clients and servers of package `runtime.v1`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// What berthd serves besides: package `berth.v1` of `berth.proto`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod berth {
    tonic::include_proto!("berth.v1");
}

/// The compiled `FileDescriptorSet` of CRI, for tests that compare names and numbers with the published ones.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
