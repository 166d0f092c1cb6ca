//! `/images`, as far as containers need them: pulled, listed, inspected.

use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::Call;
use crate::http::{
    body::{self, Answer},
    error::{Failure, Result},
};

pub(super) fn list(call: &Call) -> Result<Answer> {
    let images = &call.engine.node.host.images;
    let listed: Vec<Value> = images
        .all()
        .iter()
        .map(|image| {
            let names = images.names(image);
            json!({
                "Id": image.id.to_string(),
                "ParentId": "",
                "RepoTags": names.tags,
                "RepoDigests": names.digests,
                "Created": 0,
                "Size": image.size,
                "SharedSize": -1,
                "Containers": -1,
                "Labels": {},
            })
        })
        .collect();
    Ok(body::ok(&listed))
}

pub(super) fn inspect(call: &Call, name: &str) -> Result<Answer> {
    let images = &call.engine.node.host.images;
    let image = images.find(name)?;
    let image = image.ok_or_else(|| Failure::not_found(format!("No such image: {name}")))?;
    let names = images.names(&image);
    Ok(body::ok(&json!({
        "Id": image.id.to_string(),
        "RepoTags": names.tags,
        "RepoDigests": names.digests,
        "Size": image.size,
        "Os": "linux",
        "Config": image.config.config(),
    })))
}

pub(super) async fn pull(call: Call) -> Result<Answer> {
    let (name, tag) = (call.query.get("fromImage"), call.query.get("tag"));
    let reference = match tag {
        "" => name.to_owned(),
        digest if digest.contains(':') => format!("{name}@{digest}"),
        tag => format!("{name}:{tag}"),
    };
    let images = call.engine.node.host.images.clone();
    images.pull(&reference, berth_image::AuthConfig::default()).await?;
    let status = format!(
        "{}\r\n",
        json!({ "status": format!("Status: Downloaded newer image for {reference}") })
    );
    Ok(body::streaming("application/json", stream::once(async { Ok(Bytes::from(status)) })))
}
