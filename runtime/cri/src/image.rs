//! ImageService: one short method for each RPC.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_base::{error::Error, trash};
use berth_node::Node;
use berth_proto::v1::{self, image_service_server::ImageService};
use tonic::{Request, Response, Status, codegen::BoxStream};

use super::{chunks, convert, status};
use crate::code::to_status;

/// How long the answer to a removal waits for the disk: less than what the kubelet allows for it.
const DELETION_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Images {
    pub node: Arc<Node>,
}

type RpcResult<T> = Result<Response<T>, Status>;

impl Images {
    /// The image of a request.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none, or for an unknown runtime handler (KEP 4216).
    fn named(&self, spec: Option<v1::ImageSpec>) -> Result<v1::ImageSpec, Error> {
        let spec = spec.ok_or_else(|| Error::invalid("image is missing"))?;
        self.node.host.handlers.oci_runtime(&spec.runtime_handler)?;
        Ok(spec)
    }

    /// The images of a list. A filter names one image, by tag, digest or id.
    fn matching(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Error> {
        let images = &self.node.host.images;
        let wanted =
            filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
        let listed = if wanted.is_empty() {
            images.all()
        } else {
            images.find(&wanted)?.into_iter().collect()
        };
        Ok(listed
            .iter()
            .map(|image| convert::image(image, images.names(image), images.is_pinned(image)))
            .collect())
    }
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> RpcResult<v1::ListImagesResponse> {
        let images = self.matching(request.into_inner().filter).map_err(to_status)?;
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> RpcResult<BoxStream<v1::StreamImagesResponse>> {
        let items = self.matching(request.into_inner().filter).map_err(to_status)?;
        Ok(Response::new(chunks(items, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> RpcResult<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let images = &self.node.host.images;
        // An image that is not here is no error: the response is then without an image, and the
        // kubelet pulls it.
        let found =
            images.find(&self.named(request.image).map_err(to_status)?.image).map_err(to_status)?;
        let info = found
            .as_ref()
            .filter(|_| request.verbose)
            .map_or_else(HashMap::new, |image| status::image_info(image));
        let image = found
            .map(|image| convert::image(&image, images.names(&image), images.is_pinned(&image)));
        Ok(Response::new(v1::ImageStatusResponse { image, info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> RpcResult<v1::PullImageResponse> {
        let request = request.into_inner();
        let spec = self.named(request.image).map_err(to_status)?;
        // The pull runs in a task. It goes on if the client gives up, and a retry joins it.
        let id = self
            .node
            .host
            .images
            .pull(&spec.image, convert::auth(request.auth))
            .await
            .map_err(to_status)?;
        Ok(Response::new(v1::PullImageResponse { image_ref: id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> RpcResult<v1::RemoveImageResponse> {
        // Success as well if there is no such image. Its layers stay for as long as a container has
        // them.
        self.node
            .host
            .images
            .remove(&self.named(request.into_inner().image).map_err(to_status)?.image)
            .map_err(to_status)?;
        // A kubelet that is short of disk looks at what is free as soon as it has the answer, and
        // evicts a pod if that is not more than before.
        let deleted = tokio::task::spawn_blocking(|| trash::wait_until_deleted(DELETION_LIMIT));
        let _ = deleted.await;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> RpcResult<v1::ImageFsInfoResponse> {
        let host = &self.node.host;
        let usage = host.images.usage();
        let filesystem = v1::FilesystemUsage {
            timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
                as i64,
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: host.layout.layers().display().to_string(),
            }),
            used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![filesystem],
            // Containers' files are on the same filesystem (KEP 4191).
            container_filesystems: Vec::new(),
        }))
    }
}
