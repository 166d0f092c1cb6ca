//! `GET /images/{name}/history`.

use berth_base::blocking::blocking;
use serde::Serialize;

use super::{Step, document, find};
use crate::{
    http::{
        body::{self, Answer},
        error::Result,
    },
    routes::Call,
    time::parse_rfc3339,
};

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line {
    comment: String,
    created: i64,
    created_by: String,
    id: String,
    size: u64,
    tags: Option<Vec<String>>,
}

pub(in crate::routes) fn history(call: &Call, name: &str) -> Result<Answer> {
    let engine = &call.engine;
    let images = &engine.node.host.images;
    let image = find(engine, name)?;
    let (document, _) = blocking(|| document(engine, &image));
    let sizes = blocking(|| images.layer_sizes(&image));
    let mut lines = lines(document.history.unwrap_or_default(), sizes);
    // Each image of which the one before was made here had all steps but the last.
    let mut step = Some(image);
    for line in &mut lines {
        let Some(image) = step else { break };
        let tags = super::shown(images.names(&image)).0;
        line.id = image.id.to_string();
        line.tags = Some(tags).filter(|tags| !tags.is_empty());
        step = images.parent(&image).and_then(|id| images.find(id.as_str()).ok().flatten());
    }
    Ok(body::ok(&lines))
}

/// The last step first. `sizes` are those of the layers, the lowest first.
fn lines(history: Vec<Step>, sizes: Vec<u64>) -> Vec<Line> {
    let mut sizes = sizes.into_iter();
    let line = |step: Step| Line {
        comment: step.comment,
        created: parse_rfc3339(&step.created).unwrap_or(0) / 1_000_000_000,
        created_by: step.created_by,
        id: "<missing>".to_owned(),
        size: if step.empty_layer { 0 } else { sizes.next().unwrap_or_default() },
        tags: None,
    };
    let mut lines: Vec<Line> = history.into_iter().map(line).collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::{super::Document, *};

    #[test]
    fn steps_without_files_have_no_size() {
        let document = br#"{"history":[{"created_by":"ADD","created":"1970-01-01T00:00:05Z"},
            {"created_by":"CMD","empty_layer":true},{"created_by":"RUN","comment":"c"}]}"#;
        let document: Document = serde_json::from_slice(document).unwrap();
        let lines = lines(document.history.unwrap(), vec![7, 9]);
        let shown: Vec<_> = lines
            .iter()
            .map(|line| (line.created_by.as_str(), line.size, line.created, line.comment.as_str()))
            .collect();
        assert_eq!(shown, [("RUN", 9, 0, "c"), ("CMD", 0, 0, ""), ("ADD", 7, 5, "")]);
    }
}
