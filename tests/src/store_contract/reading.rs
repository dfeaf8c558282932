//! What the API reads of runs.

use longshore_coordinator::core::view::StepPhase;
use longshore_coordinator::store::batch::{Batch, RunRow};
use longshore_coordinator::store::runs::{Changed, Submitted};
use longshore_protocol::RunId;

use super::Place;
use super::rows::{run_row, step_row, summary};

/// Of one tenant, or of all.
pub async fn runs_are_listed_newest_first_page_by_page(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    // Two at the same moment: the id decides.
    let row = |change: u64| RunRow {
        change,
        summary: summary(RunId::new(), change / 2),
        pipeline_hash: "h".to_owned(),
        done: false,
    };
    let runs: Vec<RunRow> = (1..=5).map(row).collect();
    let ids: Vec<RunId> = runs.iter().rev().map(|row| row.summary.run).collect();
    store.commit(epoch, &Batch { runs, ..Batch::default() }).await.unwrap();
    let of_tenant = async |tenant| store.list_runs(Some(tenant), None, 10).await.unwrap().len();
    assert_eq!((of_tenant("default").await, of_tenant("other").await), (5, 0));
    let list = async |before, limit| -> Vec<RunId> {
        store.list_runs(None, before, limit).await.unwrap().into_iter().map(|run| run.run).collect()
    };
    assert_eq!(list(None, 10).await, ids);
    assert_eq!(list(None, 2).await, ids[..2]);
    assert_eq!(list(Some(ids[1]), 10).await, ids[2..]);
}

/// Whoever follows goes on behind the last change that was seen, and learns when nothing more can come.
pub async fn a_run_is_read_with_its_steps_and_what_changed_since(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let run = RunId::new();
    assert!(store.run(run).await.unwrap().is_none());
    assert_eq!(store.changes_after(run, 0).await.unwrap().0.len(), 0);
    let batch = Batch {
        runs: vec![run_row(3, run, false)],
        steps: vec![step_row(1, run, 0, StepPhase::Waiting), step_row(2, run, 1, StepPhase::Waiting)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let found = store.run(run).await.unwrap().unwrap();
    let names: Vec<&str> = found.view.steps.iter().map(|step| step.step.as_str()).collect();
    assert_eq!((names, found.change, found.done), (vec!["s0", "s1"], 3, false));
    let batch = Batch {
        runs: vec![run_row(5, run, true)],
        steps: vec![step_row(4, run, 0, StepPhase::Settled)],
        ..Batch::default()
    };
    store.commit(epoch, &batch).await.unwrap();
    let (changes, done) = store.changes_after(run, found.change).await.unwrap();
    assert!(done);
    assert!(
        matches!(&changes[..], [(4, Changed::Step(step)), (5, Changed::Run(_))] if step.phase == StepPhase::Settled),
        "{changes:?}"
    );
    let step = store.step(run, &"s0".into()).await.unwrap().unwrap();
    assert_eq!(step.phase, StepPhase::Settled);
    assert!(store.step(run, &"s9".into()).await.unwrap().is_none());
    assert_eq!(store.summary(run).await.unwrap().map(|(_, done)| done), Some(true));
    assert_eq!(store.summary(RunId::new()).await.unwrap(), None);
}

/// What was submitted stays as it was, whatever is shown of the run later.
pub async fn a_repeated_submit_is_told_from_another(place: &impl Place) {
    let store = place.open().await;
    let epoch = store.take_epoch("t").await.unwrap().unwrap();
    let run = RunId::new();
    assert_eq!(store.submitted(run).await.unwrap(), None);
    for change in 1..=2 {
        let pipeline_hash = if change == 1 { "h" } else { "" }.to_owned();
        let row = RunRow { pipeline_hash, ..run_row(change, run, false) };
        store.commit(epoch, &Batch { runs: vec![row], ..Batch::default() }).await.unwrap();
        let submitted = Submitted { pipeline_hash: "h".to_owned(), tenant: "default".to_owned() };
        assert_eq!(store.submitted(run).await.unwrap(), Some(submitted));
    }
    store.answers().await.unwrap();
}
