//! SPDY/3.1: what kubectl, the kubelet and crictl have streamed over for most of Kubernetes' life.

pub(super) mod connection;
mod dictionary;
mod frame;
mod serve;

#[cfg(fuzzing)]
pub use self::frame::fuzz;
pub(super) use self::serve::respond;
