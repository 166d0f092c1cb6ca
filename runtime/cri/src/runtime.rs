//! RuntimeService: one short method for each RPC. Those that are not served, such as
//! CheckpointContainer, respond Unimplemented by the default that tonic generates.

use std::{collections::HashMap, sync::Arc, time::Duration};

use berth_base::{config::Driver, error::Error};
use berth_node::{Node, container::Container, sandbox::Sizes, stats};
use berth_proto::{
    ListContainersResponse,
    v1::{self, runtime_service_server::RuntimeService},
};
use berth_streaming::{Session, Streaming};
use tonic::{Request, Response, Status, codegen::BoxStream};

use super::{chunks, convert, encoded::EncodedItems, events::Events, filter, status};
use crate::code::to_status;

#[derive(Debug)]
pub(super) struct Runtime {
    pub node: Arc<Node>,
    pub streaming: Arc<Streaming>,
    pub events: Events,
    pub items: EncodedItems,
}

/// The result of a unary RPC.
type RpcResult<T> = Result<Response<T>, Status>;

fn ok<T>(message: T) -> RpcResult<T> {
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> RpcResult<v1::VersionResponse> {
        ok(status::version())
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> RpcResult<v1::StatusResponse> {
        ok(status::status(&self.node, request.into_inner().verbose).await)
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> RpcResult<v1::RuntimeConfigResponse> {
        let driver = match self.node.host.cgroups.driver {
            Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            Driver::Systemd => v1::CgroupDriver::Systemd,
        };
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        ok(v1::RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> RpcResult<v1::UpdateRuntimeConfigResponse> {
        let network = request
            .into_inner()
            .runtime_config
            .and_then(|config| config.network_config)
            .unwrap_or_default();
        // It is empty where nobody has given the node a range of addresses.
        if !network.pod_cidr.is_empty() {
            let set = self.node.host.networks.set_pod_cidr(&network.pod_cidr);
            set.map_err(|error| Error::invalid(format!("{error:#}"))).map_err(to_status)?;
            tracing::info!(
                pod_cidr = network.pod_cidr,
                "the kubelet has set the network of pods (UpdateRuntimeConfig)"
            );
        }
        ok(v1::UpdateRuntimeConfigResponse {})
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> RpcResult<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config =
            convert::sandbox_config(request.config, request.runtime_handler).map_err(to_status)?;
        let id = self.node.run_sandbox(config).await.map_err(to_status)?;
        ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> RpcResult<v1::StopPodSandboxResponse> {
        self.node.stop_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(to_status)?;
        ok(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> RpcResult<v1::RemovePodSandboxResponse> {
        self.node.remove_sandbox(&request.into_inner().pod_sandbox_id).await.map_err(to_status)?;
        ok(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> RpcResult<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.node.sandboxes.find(&request.pod_sandbox_id).map_err(to_status)?;
        let info = if request.verbose {
            status::sandbox_info(&self.node, &sandbox).await
        } else {
            HashMap::new()
        };
        ok(v1::PodSandboxStatusResponse {
            status: Some(convert::sandbox_status(&sandbox)),
            info,
            ..Default::default()
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> RpcResult<v1::ListPodSandboxResponse> {
        let items = self.matching_sandboxes(request.into_inner().filter);
        ok(v1::ListPodSandboxResponse { items })
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> RpcResult<BoxStream<v1::StreamPodSandboxesResponse>> {
        let items = self.matching_sandboxes(request.into_inner().filter);
        ok(chunks(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> RpcResult<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let sizes = Sizes {
            overhead: request.overhead.map(convert::resources),
            resources: request.resources.map(convert::resources),
        };
        self.node.update_sandbox(&request.pod_sandbox_id, sizes).await.map_err(to_status)?;
        ok(v1::UpdatePodSandboxResourcesResponse {})
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> RpcResult<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let image = request.config.as_ref().and_then(|config| config.image.as_ref());
        // The image may name a handler of its own (KEP 4216), which has to exist.
        self.node
            .host
            .handlers
            .oci_runtime(image.map_or("", |image| &image.runtime_handler))
            .map_err(to_status)?;
        let config = convert::container_config(request.config).map_err(to_status)?;
        let id =
            self.node.create_container(&request.pod_sandbox_id, config).await.map_err(to_status)?;
        ok(v1::CreateContainerResponse { container_id: id.to_string() })
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> RpcResult<v1::StartContainerResponse> {
        self.node.start_container(&request.into_inner().container_id).await.map_err(to_status)?;
        ok(v1::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> RpcResult<v1::StopContainerResponse> {
        let request = request.into_inner();
        // Negative or 0: SIGKILL at once.
        let grace = u64::try_from(request.timeout).map_or(Duration::ZERO, Duration::from_secs);
        self.node.stop_container(&request.container_id, grace).await.map_err(to_status)?;
        ok(v1::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> RpcResult<v1::RemoveContainerResponse> {
        self.node.remove_container(&request.into_inner().container_id).await.map_err(to_status)?;
        ok(v1::RemoveContainerResponse {})
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> RpcResult<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.node.containers.find(&request.container_id).map_err(to_status)?;
        let status = convert::container_status(&container);
        let info = if request.verbose {
            status::container_info(&self.node, &container)
        } else {
            HashMap::new()
        };
        ok(v1::ContainerStatusResponse { status: Some(status), info })
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> RpcResult<ListContainersResponse> {
        let found = filter::containers(&self.node, request.into_inner().filter);
        ok(ListContainersResponse { containers: self.items.encode(&found) })
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> RpcResult<BoxStream<v1::StreamContainersResponse>> {
        let found = filter::containers(&self.node, request.into_inner().filter);
        let items = found.iter().map(|container| convert::container_item(container)).collect();
        ok(chunks(items, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> RpcResult<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let resources = convert::resources(request.linux.unwrap_or_default());
        self.node.update_container(&request.container_id, resources).await.map_err(to_status)?;
        ok(v1::UpdateContainerResourcesResponse {})
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> RpcResult<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let output = self
            .node
            .exec_sync(&request.container_id, request.cmd, convert::timeout(request.timeout))
            .await
            .map_err(to_status)?;
        ok(convert::exec_output(output))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> RpcResult<v1::ExecResponse> {
        let request = request.into_inner();
        let options =
            convert::streams((request.stdin, request.stdout, request.stderr), request.tty)
                .map_err(to_status)?;
        // All that can be refused is refused here. Once the client has a URL, an error could only
        // be shown on its terminal.
        let container = self.node.running_container(&request.container_id).map_err(to_status)?;
        if request.cmd.first().is_none_or(String::is_empty) {
            return Err(to_status(Error::invalid(
                "cmd is missing: there is no command to execute",
            )));
        }
        let url = self
            .streaming
            .offer(Session::exec(container, request.cmd, options))
            .map_err(to_status)?;
        ok(v1::ExecResponse { url })
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> RpcResult<v1::AttachResponse> {
        let request = request.into_inner();
        let options =
            convert::streams((request.stdin, request.stdout, request.stderr), request.tty)
                .map_err(to_status)?;
        let container = self.node.running_container(&request.container_id).map_err(to_status)?;
        let url = self.streaming.offer(Session::attach(container, options)).map_err(to_status)?;
        ok(v1::AttachResponse { url })
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> RpcResult<v1::PortForwardResponse> {
        let request = request.into_inner();
        // Its network namespace is gone once the pod has stopped.
        let sandbox = self.node.ready_sandbox(&request.pod_sandbox_id).map_err(to_status)?;
        let ports = convert::ports(&request.port).map_err(to_status)?;
        let url = self
            .streaming
            .offer(Session::port_forward(sandbox.meta.netns(), ports))
            .map_err(to_status)?;
        ok(v1::PortForwardResponse { url })
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> RpcResult<v1::ContainerStatsResponse> {
        let container =
            self.node.running_container(&request.into_inner().container_id).map_err(to_status)?;
        // It may end between the lookup and the sample.
        let stats = self.stats_of(vec![container]).await?.pop();
        let stats =
            stats.ok_or_else(|| Status::failed_precondition("the container ended just now"))?;
        ok(v1::ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> RpcResult<v1::ListContainerStatsResponse> {
        let containers = filter::stats_of_containers(&self.node, request.into_inner().filter);
        ok(v1::ListContainerStatsResponse { stats: self.stats_of(containers).await? })
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> RpcResult<BoxStream<v1::StreamContainerStatsResponse>> {
        let containers = filter::stats_of_containers(&self.node, request.into_inner().filter);
        let items = self.stats_of(containers).await?;
        ok(chunks(items, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> RpcResult<v1::PodSandboxStatsResponse> {
        let sandbox =
            self.node.sandboxes.find(&request.into_inner().pod_sandbox_id).map_err(to_status)?;
        let stats = stats::of_pod(&self.node, sandbox).await.map_err(to_status)?;
        ok(v1::PodSandboxStatsResponse { stats: Some(convert::sandbox_stats(&stats)) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> RpcResult<v1::ListPodSandboxStatsResponse> {
        ok(v1::ListPodSandboxStatsResponse {
            stats: self.stats_of_pods(request.into_inner().filter).await?,
        })
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> RpcResult<BoxStream<v1::StreamPodSandboxStatsResponse>> {
        let items = self.stats_of_pods(request.into_inner().filter).await?;
        ok(chunks(items, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        }))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> RpcResult<BoxStream<v1::ContainerEventResponse>> {
        ok(self.events.listen())
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> RpcResult<v1::ListMetricDescriptorsResponse> {
        ok(v1::ListMetricDescriptorsResponse { descriptors: convert::metric_descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> RpcResult<v1::ListPodSandboxMetricsResponse> {
        ok(v1::ListPodSandboxMetricsResponse { pod_metrics: self.pod_metrics().await? })
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> RpcResult<BoxStream<v1::StreamPodSandboxMetricsResponse>> {
        let items = self.pod_metrics().await?;
        ok(chunks(items, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> RpcResult<v1::ReopenContainerLogResponse> {
        self.node.reopen_log(&request.into_inner().container_id).await.map_err(to_status)?;
        ok(v1::ReopenContainerLogResponse {})
    }
}

impl Runtime {
    fn matching_sandboxes(&self, wanted: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        filter::sandboxes(&self.node, wanted)
            .iter()
            .map(|sandbox| convert::sandbox_item(sandbox))
            .collect()
    }

    async fn stats_of(
        &self,
        containers: Vec<Arc<Container>>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let samples = stats::of_containers(&self.node, containers).await.map_err(to_status)?;
        Ok(samples.iter().map(convert::container_stats).collect())
    }

    async fn stats_of_pods(
        &self,
        wanted: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let samples = stats::of_pods(&self.node, filter::stats_of_sandboxes(&self.node, wanted))
            .await
            .map_err(to_status)?;
        Ok(samples.iter().map(convert::sandbox_stats).collect())
    }

    async fn pod_metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        Ok(stats::metrics(&self.node)
            .await
            .map_err(to_status)?
            .into_iter()
            .map(convert::pod_metrics)
            .collect())
    }
}
