//! ImageService.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use berth_proto::v1::{self, image_service_server::ImageService};
use tonic::{Request, Response, Status, codegen::BoxStream};

use super::{convert, pieces, status};
use crate::{error::Error, node::Node};

#[derive(Debug)]
pub(super) struct Images {
    pub node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Images {
    fn named(&self, spec: Option<v1::ImageSpec>) -> Result<v1::ImageSpec, Error> {
        let spec = spec.ok_or_else(|| Error::invalid("image is missing"))?;
        self.node.machine.handlers.oci_runtime(&spec.runtime_handler)?;
        Ok(spec)
    }

    fn matching(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Error> {
        let images = &self.node.machine.images;
        let wanted = filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
        let listed = if wanted.is_empty() { images.all() } else { images.find(&wanted)?.into_iter().collect() };
        Ok(listed.iter().map(|image| convert::image(image, images.names(image), images.is_pinned(image))).collect())
    }
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let images = self.matching(request.into_inner().filter)?;
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<BoxStream<v1::StreamImagesResponse>> {
        let items = self.matching(request.into_inner().filter)?;
        Ok(Response::new(pieces(items, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let images = &self.node.machine.images;
        let found = images.find(&self.named(request.image)?.image)?;
        let info =
            found.as_ref().filter(|_| request.verbose).map_or_else(HashMap::new, |image| status::image_info(image));
        let image = found.map(|image| convert::image(&image, images.names(&image), images.is_pinned(&image)));
        Ok(Response::new(v1::ImageStatusResponse { image, info }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let spec = self.named(request.image)?;
        let id = self.node.machine.images.pull(&spec.image, convert::auth(request.auth)).await?;
        Ok(Response::new(v1::PullImageResponse { image_ref: id.to_string() }))
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        self.node.machine.images.remove(&self.named(request.into_inner().image)?.image)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        let machine = &self.node.machine;
        let usage = machine.images.usage();
        let filesystem = v1::FilesystemUsage {
            timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: machine.layout.layers().display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![filesystem],
            container_filesystems: Vec::new(),
        }))
    }
}
