//! The keys that say how a step waits: for how long, in which group; and how long its run may take.

use super::bounds;
use super::matrix::Values;
use super::model::Concurrency;
use super::raw::{DurationText, RawConcurrency, RawGroup, RawStep};
use super::step::Resolver;
use super::tree::Node;
use super::units;

#[expect(clippy::option_option, reason = "the outer one: whether it is right; the inner one: whether it is there")]
impl Resolver<'_> {
    /// Of the whole run.
    pub(super) fn run_timeout(&mut self) -> Option<Option<u64>> {
        let (timeout, place) = (self.raw.timeout.as_ref(), self.root.get("timeout"));
        self.duration(timeout, place, bounds::timeout_ms)
    }

    /// The step's own, that of the defaults, or the pipeline's.
    pub(super) fn queue_timeout(&mut self, step: &RawStep, node: &Node) -> Option<Option<u64>> {
        let defaults = self.root.get("defaults").and_then(|defaults| defaults.get("queue_timeout"));
        let place = node.get("queue_timeout").or(defaults).or_else(|| self.root.get("queue_timeout"));
        let raw = self.raw;
        let text = step.queue_timeout.as_ref().or(raw.defaults.queue_timeout.as_ref()).or(raw.queue_timeout.as_ref());
        self.duration(text, place, bounds::queue_timeout_ms)
    }

    /// The step's own group, or that of the defaults, as a whole.
    pub(super) fn concurrency(&mut self, step: &RawStep, node: &Node, values: &Values) -> Option<Option<Concurrency>> {
        let defaults = self.root.get("defaults").and_then(|defaults| defaults.get("concurrency"));
        let raw = self.raw;
        let (written, place) = match (&step.concurrency, &raw.defaults.concurrency) {
            (Some(written), _) => (written, node.get("concurrency")),
            (None, Some(written)) => (written, defaults),
            (None, None) => return Some(None),
        };
        let (group, max, group_place) = match written {
            RawConcurrency::Name(group) => (group, 1, place),
            RawConcurrency::Group(RawGroup { group, max }) => {
                (group, max.unwrap_or(1), place.and_then(|place| place.get("group")))
            }
        };
        let concurrency = Concurrency { group: self.render(group, group_place, values)?, max };
        self.check(bounds::concurrency(&concurrency), place)?;
        Some(Some(concurrency))
    }

    fn duration(
        &mut self,
        text: Option<&DurationText>,
        place: Option<&Node>,
        check: impl Fn(u64) -> Result<(), String>,
    ) -> Option<Option<u64>> {
        let Some(text) = text else { return Some(None) };
        let ms = units::duration_ms(&text.0).and_then(|ms| check(ms).map(|()| ms));
        self.check(ms, place).map(Some)
    }
}
