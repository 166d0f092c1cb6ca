//! What berthd serves for its own command line (`berth.proto`).

use std::sync::Arc;

use berth_proto::berth::{ImportRequest, ImportResponse, ImportedImage, images_server::Images};
use tonic::{Request, Response, Status};

use crate::node::Node;

#[derive(Debug)]
pub(super) struct Own {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Images for Own {
    async fn import(&self, request: Request<ImportRequest>) -> Result<Response<ImportResponse>, Status> {
        let ImportRequest { path, name } = request.into_inner();
        let imported = self.node.machine.images.import(path.into(), &name).await?;
        let image = |(id, names): (crate::image::Digest, _)| ImportedImage { id: id.to_string(), names };
        Ok(Response::new(ImportResponse { images: imported.into_iter().map(image).collect() }))
    }
}
