//! What pods and containers use, for the kubelet: as CRI's stats, and as the metrics that cAdvisor
//! would give.
//!
//! Nothing is sampled in the background. A request reads counters, and a rate is the difference to
//! the sample before.

mod cadvisor;
mod network;
mod processes;
mod sample;

pub use self::{
    cadvisor::{CADVISOR, Kind, Metric, PodMetrics, Value, metrics},
    network::{Interface, interfaces},
    sample::{PodStats, of_containers, of_pod, of_pods},
};
