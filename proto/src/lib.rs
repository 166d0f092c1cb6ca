//! The Container Runtime Interface, version v1, as Kubernetes 1.37 publishes it.
//!
//! Everything here is generated from `api.proto` and, for berth's own, `berth.proto`. Only
//! `runtime/cri` and the black-box tests name these types.

/// Messages, clients and servers of package `runtime.v1`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// `runtime.v1.ListContainersResponse`, whose items stay encoded: on the wire a message in a
/// message is bytes. The kubelet lists every second, and what it is told of a container changes
/// three times in a life.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListContainersResponse {
    /// Of `v1::Container`.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub containers: Vec<prost::bytes::Bytes>,
}

/// What berthd serves besides: package `berth.v1` of `berth.proto`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod berth {
    tonic::include_proto!("berth.v1");
}

/// The compiled `FileDescriptorSet` of CRI, for tests that compare names and numbers with the
/// published ones.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
