//! The service that `berthd images` calls (`berth.proto`).

use std::sync::Arc;

use berth_image::{self as image, CheckedImage, Health};
use berth_node::Node;
use berth_proto::berth::{
    CheckRequest, CheckResponse, ExportRequest, ExportResponse, ImportRequest, ImportResponse,
    ImportedImage, check_response::State, images_server::Images,
};
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, codegen::BoxStream};

use crate::code::to_status;

/// Works on the images of a node.
#[derive(Debug)]
pub(super) struct Admin {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Images for Admin {
    type CheckStream = BoxStream<CheckResponse>;

    async fn import(
        &self,
        request: Request<ImportRequest>,
    ) -> Result<Response<ImportResponse>, Status> {
        let ImportRequest { path, name } = request.into_inner();
        let imported = self.node.host.images.import(path.into(), &name).await.map_err(to_status)?;
        let images = imported.into_iter().map(imported_image).collect();
        Ok(Response::new(ImportResponse { images }))
    }

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<ExportResponse>, Status> {
        let ExportRequest { path, names } = request.into_inner();
        self.node.host.images.export(path.into(), &names).await.map_err(to_status)?;
        Ok(Response::new(ExportResponse {}))
    }

    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<Self::CheckStream>, Status> {
        let repair = request.into_inner().repair;
        let images = self.node.host.images.clone();
        // One image ahead at most: the check goes at the pace of the client, and ends when that
        // goes away.
        let (sender, receiver) = mpsc::channel(1);
        let checking = tokio::spawn(async move { images.check(repair, sender).await });
        let found = stream::unfold(receiver, async |mut receiver| {
            let checked = receiver.recv().await?;
            Some((Ok(checked_image(checked)), receiver))
        });
        // The stream ends with the check's own error, if it has one.
        let end = stream::once(checking).filter_map(async |ended| match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Err(to_status(error))),
            Err(error) => Some(Err(Status::internal(error.to_string()))),
        });
        Ok(Response::new(Box::pin(found.chain(end))))
    }
}

fn imported_image(image: image::ImportedImage) -> ImportedImage {
    ImportedImage { id: image.id.to_string(), names: image.tags }
}

fn checked_image(CheckedImage { id, names, health, problems }: CheckedImage) -> CheckResponse {
    let state = match health {
        Health::Whole => State::Whole,
        Health::Damaged => State::Damaged,
        Health::Repaired => State::Repaired,
    };
    CheckResponse { id: id.to_string(), names, state: state.into(), problems }
}
