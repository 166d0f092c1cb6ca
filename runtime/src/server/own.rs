//! What berthd serves for its own command line (`berth.proto`).

use std::sync::Arc;

use berth_proto::berth::{
    CheckRequest, CheckResponse, ExportRequest, ExportResponse, ImportRequest, ImportResponse, ImportedImage,
    check_response::State, images_server::Images,
};
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, codegen::BoxStream};

use crate::{
    image::{Checked, Digest, Health},
    node::Node,
};

#[derive(Debug)]
pub(super) struct Own {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Images for Own {
    type CheckStream = BoxStream<CheckResponse>;

    async fn import(&self, request: Request<ImportRequest>) -> Result<Response<ImportResponse>, Status> {
        let ImportRequest { path, name } = request.into_inner();
        let imported = self.node.machine.images.import(path.into(), &name).await?;
        let image = |(id, names): (Digest, _)| ImportedImage { id: id.to_string(), names };
        Ok(Response::new(ImportResponse { images: imported.into_iter().map(image).collect() }))
    }

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<ExportResponse>, Status> {
        let ExportRequest { path, names } = request.into_inner();
        self.node.machine.images.export(path.into(), &names).await?;
        Ok(Response::new(ExportResponse {}))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<Self::CheckStream>, Status> {
        let repair = request.into_inner().repair;
        let images = self.node.machine.images.clone();
        let (sender, receiver) = mpsc::channel(1);
        let checking = tokio::spawn(async move { images.check(repair, sender).await });
        let found = stream::unfold(receiver, async |mut receiver| {
            let checked = receiver.recv().await?;
            Some((Ok(told(checked)), receiver))
        });
        let end = stream::once(checking).filter_map(async |ended| match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Err(error.into())),
            Err(error) => Some(Err(Status::internal(error.to_string()))),
        });
        Ok(Response::new(Box::pin(found.chain(end))))
    }
}

fn told(Checked { id, names, state, problems }: Checked) -> CheckResponse {
    let state = match state {
        Health::Whole => State::Whole,
        Health::Damaged => State::Damaged,
        Health::Repaired => State::Repaired,
    };
    CheckResponse { id: id.to_string(), names, state: state.into(), problems }
}
