//! A CRI client over a unix socket, with the calls that most tests make. Lists are asked for twice,
//! by the unary RPC and by its Stream form, which must agree.

use std::path::Path;

use berth_proto::v1::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use futures_util::TryStreamExt;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{eventually, image::Image, machine::Machine, registry::FakeRegistry};

/// Clients of RuntimeService and ImageService, on one connection.
#[derive(Clone, Debug)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

type RpcResult<T> = Result<T, Status>;

impl Cri {
    /// Makes a client; the connection is made at the first call.
    pub fn connect(socket: &Path) -> Self {
        let socket = socket.to_owned();
        // The endpoint's host is never looked up: every connection is to the socket.
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        // The kubelet's limit for a message. Responses of ExecSync may be twice that, for two streams.
        let limit = 16 << 20;
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(2 * limit),
            images: ImageServiceClient::new(channel).max_decoding_message_size(limit),
        }
    }

    /// Waits until the daemon serves, five seconds at most.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub async fn serving(&self) -> RpcResult<()> {
        let mut last = Ok(());
        for _ in 0..1000 {
            last = self.runtime.clone().version(v1::VersionRequest::default()).await.map(drop);
            if last.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        last
    }

    /// PullImage; returns the image's id.
    pub async fn pull(&self, image: &str) -> RpcResult<String> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, ..Default::default() };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// Serves `image` from a registry, pulls it, and returns the name that it was pulled by.
    ///
    /// # Panics
    /// The pull fails.
    pub async fn pull_image(&self, machine: &Machine, image: Image) -> String {
        let registry = FakeRegistry::start(machine, image, |_| None);
        let name = format!("{}/image:1", registry.host);
        self.pull(&name).await.expect("pull");
        name
    }

    /// ImageFsInfo: bytes and inodes that images use.
    pub async fn image_fs(&self) -> (u64, u64) {
        let answer = self
            .images
            .clone()
            .image_fs_info(v1::ImageFsInfoRequest {})
            .await
            .expect("ImageFsInfo");
        let usage = answer.into_inner().image_filesystems.remove(0);
        (
            usage.used_bytes.map_or(0, |bytes| bytes.value),
            usage.inodes_used.map_or(0, |inodes| inodes.value),
        )
    }

    /// ListImages; StreamImages must return the same.
    pub async fn images(&self) -> Vec<v1::Image> {
        let mut images = self.images.clone();
        let stream = images
            .stream_images(v1::StreamImagesRequest::default())
            .await
            .expect("stream images")
            .into_inner();
        let pieces: Vec<v1::StreamImagesResponse> =
            stream.try_collect().await.expect("stream images");
        let items = images
            .list_images(v1::ListImagesRequest::default())
            .await
            .expect("list images")
            .into_inner()
            .images;
        assert_eq!(items, pieces.into_iter().flat_map(|piece| piece.images).collect::<Vec<_>>());
        items
    }

    pub async fn image_status(&self, image: &str) -> RpcResult<Option<v1::Image>> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        Ok(self
            .images
            .clone()
            .image_status(v1::ImageStatusRequest { image, verbose: false })
            .await?
            .into_inner()
            .image)
    }

    pub async fn remove_image(&self, image: &str) -> RpcResult<()> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        self.images.clone().remove_image(v1::RemoveImageRequest { image }).await.map(drop)
    }

    pub async fn run_pod(&self, config: v1::PodSandboxConfig) -> RpcResult<String> {
        self.run_pod_under("", config).await
    }

    /// RunPodSandbox with a runtime handler.
    pub async fn run_pod_under(
        &self,
        handler: &str,
        config: v1::PodSandboxConfig,
    ) -> RpcResult<String> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> RpcResult<()> {
        self.runtime
            .clone()
            .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() })
            .await
            .map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> RpcResult<()> {
        self.runtime
            .clone()
            .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() })
            .await
            .map(drop)
    }

    pub async fn pod_status(&self, id: &str) -> RpcResult<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        Ok(self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner()
            .status
            .expect("has a status"))
    }

    /// ListPodSandbox; StreamPodSandboxes must return the same.
    pub async fn pods(&self, filter: v1::PodSandboxFilter) -> Vec<v1::PodSandbox> {
        let mut runtime = self.runtime.clone();
        let request = v1::StreamPodSandboxesRequest { filter: Some(filter.clone()) };
        let stream =
            runtime.stream_pod_sandboxes(request).await.expect("stream sandboxes").into_inner();
        let pieces: Vec<v1::StreamPodSandboxesResponse> =
            stream.try_collect().await.expect("stream sandboxes");
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let items =
            runtime.list_pod_sandbox(request).await.expect("list sandboxes").into_inner().items;
        assert_eq!(
            items,
            pieces.into_iter().flat_map(|piece| piece.pod_sandboxes).collect::<Vec<_>>()
        );
        items
    }

    pub async fn create(&self, pod: &str, config: v1::ContainerConfig) -> RpcResult<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&self, id: &str) -> RpcResult<()> {
        self.runtime
            .clone()
            .start_container(v1::StartContainerRequest { container_id: id.to_owned() })
            .await
            .map(drop)
    }

    /// CreateContainer and StartContainer; returns the container's id.
    pub async fn run(&self, pod: &str, config: v1::ContainerConfig) -> RpcResult<String> {
        let id = Box::pin(self.create(pod, config)).await?;
        self.start(&id).await?;
        Ok(id)
    }

    pub async fn stop(&self, id: &str, timeout: i64) -> RpcResult<()> {
        self.runtime
            .clone()
            .stop_container(v1::StopContainerRequest { container_id: id.to_owned(), timeout })
            .await
            .map(drop)
    }

    pub async fn remove(&self, id: &str) -> RpcResult<()> {
        self.runtime
            .clone()
            .remove_container(v1::RemoveContainerRequest { container_id: id.to_owned() })
            .await
            .map(drop)
    }

    pub async fn status(&self, id: &str) -> RpcResult<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        Ok(self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner()
            .status
            .expect("has a status"))
    }

    /// The entry `info` of a verbose ContainerStatus, parsed.
    pub async fn info(&self, id: &str) -> serde_json::Value {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info =
            self.runtime.clone().container_status(request).await.expect("status").into_inner().info;
        serde_json::from_str(&info["info"]).expect("info is JSON")
    }

    /// ListContainers; StreamContainers must return the same.
    pub async fn containers(&self, filter: v1::ContainerFilter) -> Vec<v1::Container> {
        let mut runtime = self.runtime.clone();
        let request = v1::StreamContainersRequest { filter: Some(filter.clone()) };
        let stream =
            runtime.stream_containers(request).await.expect("stream containers").into_inner();
        let pieces: Vec<v1::StreamContainersResponse> =
            stream.try_collect().await.expect("stream containers");
        let items = self.listed_containers(filter).await.expect("list containers");
        assert_eq!(
            items,
            pieces.into_iter().flat_map(|piece| piece.containers).collect::<Vec<_>>()
        );
        items
    }

    /// ListContainers alone, where others change the list meanwhile.
    ///
    /// # Panics
    /// An item of the list is no container.
    pub async fn listed_containers(
        &self,
        filter: v1::ContainerFilter,
    ) -> RpcResult<Vec<v1::Container>> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let response = self.runtime.clone().list_containers(request).await?.into_inner();
        let items = response.containers.into_iter();
        Ok(items.map(|item| v1::Container::decode(item).expect("a container")).collect())
    }

    pub async fn exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> RpcResult<v1::ExecSyncResponse> {
        let cmd = command.iter().map(|part| (*part).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// Runs a shell command by ExecSync, which must exit with 0, and returns its standard output.
    pub async fn sh(&self, id: &str, script: &str) -> String {
        let output = self
            .exec(id, &["sh", "-c", script], 20)
            .await
            .unwrap_or_else(|error| panic!("{script}: {error}"));
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.exit_code, 0, "{script}: {stdout}{stderr}");
        stdout.into_owned()
    }

    /// Waits until a container has exited, and returns its status.
    pub async fn exited(&self, id: &str) -> v1::ContainerStatus {
        let mut status = None;
        eventually("the container's end", async || {
            let now = self.status(id).await.expect("status");
            let exited = now.state() == v1::ContainerState::ContainerExited;
            status = Some(now);
            exited
        })
        .await;
        status.expect("seen")
    }
}
