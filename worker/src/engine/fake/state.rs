//! What a fake Engine has.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::WorkerId;
use longshore_protocol::process::watch;

use super::container::{Container, Image, Phase};
use super::faults::Faults;
use super::files::Files;
use super::{conflict, gone};
use crate::engine::{ContainerName, Duty, EngineError, Way};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) id: String,
    /// Grows with everything that is made: ids and the order of snapshots follow from it.
    pub(super) made: u64,
    pub(super) pulls: u64,
    pub(super) images: BTreeMap<String, Image>,
    /// Reference to image id, with the number of its making.
    pub(super) tags: BTreeMap<String, (String, u64)>,
    pub(super) containers: BTreeMap<ContainerName, Container>,
    /// What each worker began last.
    pub(super) duties: BTreeMap<WorkerId, OnDuty>,
    /// Moves on with every [`Engine::begin`]: how commands are run, once somebody has begun.
    pub(super) way: watch::Sender<Option<Way>>,
    pub(super) no_supervisors: Option<String>,
    /// Those that were raised.
    pub(super) flags: watch::Sender<BTreeSet<String>>,
    pub(super) faults: Faults,
}

#[derive(Debug)]
pub(super) struct OnDuty {
    pub(super) duty: Duty,
    pub(super) incarnation: u64,
}

impl State {
    pub(super) fn container(&mut self, name: &ContainerName) -> Result<&mut Container, EngineError> {
        self.containers.get_mut(name).ok_or_else(|| gone(name))
    }

    pub(super) fn supervised(
        &mut self,
        name: &ContainerName,
        operation: &'static str,
    ) -> Result<&mut Container, EngineError> {
        let container = self.container(name)?;
        match container.phase {
            _ if container.direct => Err(conflict(operation, format!("{name} has no supervisor"))),
            Phase::Dead => Err(gone(name)),
            _ => Ok(container),
        }
    }

    pub(super) fn incarnation(&self, worker: &WorkerId) -> u64 {
        self.duties.get(worker).map_or(0, |on_duty| on_duty.incarnation)
    }

    pub(super) fn image(&self, reference: &str) -> Option<&Image> {
        let id = self.tags.get(reference).map_or(reference, |(id, _)| id);
        self.images.get(id)
    }

    pub(super) fn next_id(&mut self) -> String {
        self.made += 1;
        format!("sha256:{}", blake3::hash(format!("{}/{}", self.id, self.made).as_bytes()).to_hex())
    }

    /// In place of what had the reference.
    pub(super) fn add_image(&mut self, reference: String, image: Image) -> String {
        let id = self.next_id();
        self.images.insert(id.clone(), image);
        if let Some((replaced, _)) = self.tags.insert(reference, (id.clone(), self.made)) {
            self.images.remove(&replaced);
        }
        id
    }

    pub(super) fn root_files() -> Files {
        let mut files = Files::default();
        for dir in ["bin", "dev", "etc", "root", "tmp"] {
            files.make_dirs(dir);
        }
        files
    }
}
