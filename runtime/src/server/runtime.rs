//! RuntimeService: one short method for each RPC that is served. The others answer Unimplemented by the generated default.

use std::{collections::HashMap, sync::Arc, time::Duration};

use berth_proto::{
    ListContainersResponse,
    v1::{self, runtime_service_server::RuntimeService},
};
use tonic::{Request, Response, Status, codegen::BoxStream};

use super::{convert, events::Events, filter, pieces, status};
use crate::{
    config::Driver,
    container::Container,
    error::Error,
    node::Node,
    sandbox, stats,
    streaming::{Session, Streaming},
};

#[derive(Debug)]
pub(super) struct Runtime {
    pub node: Arc<Node>,
    pub streaming: Arc<Streaming>,
    pub events: Events,
}

type Answer<T> = Result<Response<T>, Status>;

fn ok<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        ok(status::version())
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        ok(status::status(&self.node, request.into_inner().verbose).await)
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        let driver = match self.node.machine.cgroups.driver {
            Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            Driver::Systemd => v1::CgroupDriver::Systemd,
        };
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        ok(v1::RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        if !network.pod_cidr.is_empty() {
            let set = self.node.machine.networks.set_pod_cidr(&network.pod_cidr);
            set.map_err(|error| Error::invalid(format!("{error:#}")))?;
            tracing::info!(pod_cidr = network.pod_cidr, "the kubelet tells the pods' network");
        }
        ok(v1::UpdateRuntimeConfigResponse {})
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = convert::sandbox_config(request.config, request.runtime_handler)?;
        let id = self.node.run_sandbox(config).await?;
        ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        self.node.stop_sandbox(&request.into_inner().pod_sandbox_id).await?;
        ok(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        self.node.remove_sandbox(&request.into_inner().pod_sandbox_id).await?;
        ok(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.node.sandboxes.find(&request.pod_sandbox_id)?;
        let info = if request.verbose { status::sandbox_info(&self.node, &sandbox).await } else { HashMap::new() };
        ok(v1::PodSandboxStatusResponse { status: Some(convert::sandbox_status(&sandbox)), info, ..Default::default() })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = self.matching_sandboxes(request.into_inner().filter);
        ok(v1::ListPodSandboxResponse { items })
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<BoxStream<v1::StreamPodSandboxesResponse>> {
        let items = self.matching_sandboxes(request.into_inner().filter);
        ok(pieces(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let sandbox = self.node.sandboxes.find(&request.pod_sandbox_id)?;
        let (overhead, resources) =
            (request.overhead.map(convert::resources), request.resources.map(convert::resources));
        sandbox.update(&self.node.machine.layout, overhead, resources).await?;
        ok(v1::UpdatePodSandboxResourcesResponse {})
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let image = request.config.as_ref().and_then(|config| config.image.as_ref());
        self.node.machine.handlers.oci_runtime(image.map_or("", |image| &image.runtime_handler))?;
        let config = convert::container_config(request.config)?;
        let id = self.node.create_container(&request.pod_sandbox_id, config).await?;
        ok(v1::CreateContainerResponse { container_id: id.to_string() })
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        self.node.start_container(&request.into_inner().container_id).await?;
        ok(v1::StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        let grace = u64::try_from(request.timeout).map_or(Duration::ZERO, Duration::from_secs);
        self.node.stop_container(&request.container_id, grace).await?;
        ok(v1::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        self.node.remove_container(&request.into_inner().container_id).await?;
        ok(v1::RemoveContainerResponse {})
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.node.containers.find(&request.container_id)?;
        let status = convert::container_status(&container, container.user(&self.node.machine));
        let info = if request.verbose { status::container_info(&self.node, &container) } else { HashMap::new() };
        ok(v1::ContainerStatusResponse { status: Some(status), info })
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<ListContainersResponse> {
        let found = filter::containers(&self.node, request.into_inner().filter);
        let containers = found.iter().map(|container| convert::encoded_item(container)).collect();
        ok(ListContainersResponse { containers })
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<BoxStream<v1::StreamContainersResponse>> {
        let found = filter::containers(&self.node, request.into_inner().filter);
        let items = found.iter().map(|container| convert::container_item(container)).collect();
        ok(pieces(items, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let container = self.node.containers.find(&request.container_id)?;
        container.update(&self.node.machine, convert::resources(request.linux.unwrap_or_default())).await?;
        ok(v1::UpdateContainerResourcesResponse {})
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let output = self.node.exec_sync(&request.container_id, request.cmd, convert::timeout(request.timeout)).await?;
        ok(convert::exec_output(output))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let request = request.into_inner();
        let wanted = convert::streams((request.stdin, request.stdout, request.stderr), request.tty)?;
        let container = self.node.containers.find(&request.container_id)?;
        container.check_running()?;
        if request.cmd.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("no command to execute").into());
        }
        let url = self.streaming.offer(Session::Exec { container, command: request.cmd, wanted })?;
        ok(v1::ExecResponse { url })
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let request = request.into_inner();
        let wanted = convert::streams((request.stdin, request.stdout, request.stderr), request.tty)?;
        let container = self.node.containers.find(&request.container_id)?;
        container.check_running()?;
        let url = self.streaming.offer(Session::Attach { container, wanted })?;
        ok(v1::AttachResponse { url })
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.node.sandboxes.find(&request.pod_sandbox_id)?;
        if sandbox.state() != sandbox::State::Ready {
            return Err(Error::precondition(format!("sandbox {} is not ready", sandbox.meta.id)).into());
        }
        let ports = convert::ports(&request.port)?;
        let url = self.streaming.offer(Session::PortForward { netns: sandbox.meta.netns(), ports })?;
        ok(v1::PortForwardResponse { url })
    }

    async fn container_stats(&self, request: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        let container = self.node.containers.find(&request.into_inner().container_id)?;
        container.check_running()?;
        let stats = self.stats_of(vec![container]).await?.pop();
        let stats = stats.ok_or_else(|| Status::failed_precondition("the container has just ended"))?;
        ok(v1::ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let containers = filter::stats_of_containers(&self.node, request.into_inner().filter);
        ok(v1::ListContainerStatsResponse { stats: self.stats_of(containers).await? })
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<BoxStream<v1::StreamContainerStatsResponse>> {
        let containers = filter::stats_of_containers(&self.node, request.into_inner().filter);
        let items = self.stats_of(containers).await?;
        ok(pieces(items, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let sandbox = self.node.sandboxes.find(&request.into_inner().pod_sandbox_id)?;
        let stats = stats::of_pod(&self.node, sandbox).await?;
        ok(v1::PodSandboxStatsResponse { stats: Some(convert::sandbox_stats(&stats)) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        ok(v1::ListPodSandboxStatsResponse { stats: self.stats_of_pods(request.into_inner().filter).await? })
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<BoxStream<v1::StreamPodSandboxStatsResponse>> {
        let items = self.stats_of_pods(request.into_inner().filter).await?;
        ok(pieces(items, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<BoxStream<v1::ContainerEventResponse>> {
        ok(self.events.listen())
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        ok(v1::ListMetricDescriptorsResponse { descriptors: convert::metric_descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        ok(v1::ListPodSandboxMetricsResponse { pod_metrics: self.pod_metrics().await? })
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<BoxStream<v1::StreamPodSandboxMetricsResponse>> {
        let items = self.pod_metrics().await?;
        ok(pieces(items, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.node.containers.find(&request.into_inner().container_id)?.reopen_log().await?;
        ok(v1::ReopenContainerLogResponse {})
    }
}

impl Runtime {
    fn matching_sandboxes(&self, wanted: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        filter::sandboxes(&self.node, wanted).iter().map(|sandbox| convert::sandbox_item(sandbox)).collect()
    }

    async fn stats_of(&self, containers: Vec<Arc<Container>>) -> Result<Vec<v1::ContainerStats>, Status> {
        let looks = stats::of_containers(&self.node, containers).await?;
        Ok(looks.iter().map(convert::container_stats).collect())
    }

    async fn stats_of_pods(
        &self,
        wanted: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let looks = stats::of_pods(&self.node, filter::stats_of_sandboxes(&self.node, wanted)).await?;
        Ok(looks.iter().map(convert::sandbox_stats).collect())
    }

    async fn pod_metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        Ok(stats::metrics(&self.node).await?.into_iter().map(convert::pod_metrics).collect())
    }
}
