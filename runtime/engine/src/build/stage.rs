//! The stages of a Dockerfile, and where each has come to.

use std::sync::Arc;

use berth_dockerfile::{BuildArgs, Config, State};
use berth_image::{Image, LayerKey};

use super::failure::{BuildFailure, Result};

/// A stage, as its last step has left it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub state: State,
    /// `None` upon `scratch`, until there is a step.
    pub image: Option<Arc<Image>>,
    /// Whether all its steps were done before: after one that was not, none is looked for.
    pub is_cached: bool,
}

impl Stage {
    /// Begins upon an image with this config, or upon nothing.
    pub(crate) fn begin(image: Option<Arc<Image>>, config: Config, arguments: BuildArgs) -> Self {
        let mut stage =
            Self { state: State::begin(config, arguments), image: None, is_cached: true };
        stage.set_image(image);
        stage
    }

    /// Goes on with the image of a step.
    pub(crate) fn go_on(&mut self, image: Arc<Image>) {
        self.set_image(Some(image));
    }

    fn set_image(&mut self, image: Option<Arc<Image>>) {
        let id = image.as_ref().map(|image| image.id.to_string());
        self.state.config.image = id.unwrap_or_default();
        self.image = image;
    }

    /// The first digits of its image's id, as the client sees them; none upon `scratch`.
    pub(crate) fn short(&self) -> &str {
        self.image.as_ref().map_or("", |image| &image.id.hex()[..12])
    }

    /// Topmost first.
    pub(crate) fn layers(&self) -> &[LayerKey] {
        self.image.as_ref().map_or(&[], |image| &image.layers)
    }
}

/// The stages that are complete, by number and by name.
#[derive(Debug, Default)]
pub(crate) struct Stages(Vec<(Option<String>, Option<Arc<Image>>)>);

/// What a name stands for.
#[derive(Debug)]
pub(crate) enum Named {
    /// A stage, which may have nothing.
    Stage(Option<Arc<Image>>),
    /// None of the stages.
    Other,
}

impl Stages {
    /// # Errors
    /// In dockerd's words, if a stage has this name already.
    pub(crate) fn check_name(&self, name: Option<&str>) -> Result<()> {
        match name {
            Some(name) if self.0.iter().any(|(known, _)| known.as_deref() == Some(name)) => {
                Err(BuildFailure::new(format!("{name} stage name already used")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn add(&mut self, name: Option<String>, image: Option<Arc<Image>>) {
        self.0.push((name, image));
    }

    /// The stage of this name; numbers are none.
    pub(crate) fn by_name(&self, name: &str) -> Named {
        let name = name.to_lowercase();
        match self.0.iter().find(|(known, _)| known.as_ref() == Some(&name)) {
            Some((_, image)) => Named::Stage(image.clone()),
            None => Named::Other,
        }
    }

    /// The stage of this name or number.
    ///
    /// # Errors
    /// In dockerd's words, for the number of a stage that is not complete.
    pub(crate) fn find(&self, name: &str) -> Result<Named> {
        let Named::Other = self.by_name(name) else { return Ok(self.by_name(name)) };
        let Ok(number) = name.parse::<i64>() else { return Ok(Named::Other) };
        let index = usize::try_from(number).ok();
        match index.and_then(|index| self.0.get(index)) {
            Some((_, image)) => Ok(Named::Stage(image.clone())),
            None if index == Some(self.0.len()) => {
                Err(BuildFailure::new("refers to current build stage"))
            }
            None => Err(BuildFailure::new("index out of bounds")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_have_names_and_numbers() {
        let mut stages = Stages::default();
        stages.add(Some("one".to_owned()), None);
        stages.add(None, None);
        assert!(matches!(stages.find("ONE"), Ok(Named::Stage(None))));
        assert!(matches!(stages.find("1"), Ok(Named::Stage(None))));
        assert!(matches!(stages.find("other"), Ok(Named::Other)));
        assert!(matches!(stages.by_name("1"), Named::Other));
        for (number, message) in [
            ("2", "refers to current build stage"),
            ("3", "index out of bounds"),
            ("-1", "index out of bounds"),
        ] {
            assert_eq!(stages.find(number).unwrap_err().failure.message, message);
        }
        let message = "one stage name already used";
        assert_eq!(stages.check_name(Some("one")).unwrap_err().failure.message, message);
        assert!(stages.check_name(None).is_ok() && stages.check_name(Some("two")).is_ok());
    }
}
