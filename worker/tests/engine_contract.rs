//! What every Engine must do: one suite for Docker (on a real daemon) and for the fake.
//!
//! `contract` holds the suite, `docker` what only a real Engine can show, `fake` what only a fake can.

#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(unreachable_pub)] // `pub` says here what a module offers to the next

#[path = "engine_contract/bench.rs"]
mod bench;
#[path = "engine_contract/contract.rs"]
mod contract;
#[path = "engine_contract/docker.rs"]
mod docker;
#[path = "engine_contract/fake.rs"]
mod fake;
#[path = "../../tests/services.rs"]
mod services;

use longshore_worker::engine::docker::DockerEngine;
use longshore_worker::engine::fake::FakeEngine;

/// One test per rule and Engine.
macro_rules! suite {
    ($($rule:ident),* $(,)?) => {
        mod on_the_fake {
            $(#[tokio::test]
            async fn $rule() {
                crate::contract::$rule(crate::bench::Bench::new(crate::FakeEngine::default())).await;
            })*
        }
        mod on_docker {
            $(#[tokio::test]
            async fn $rule() {
                crate::contract::$rule(crate::bench::Bench::new(crate::docker_engine().await)).await;
            })*
        }
    };
}

suite!(
    info_names_the_engine,
    an_image_is_ensured_twice_with_one_id,
    an_unknown_image_is_the_requests_fault,
    a_container_is_created_listed_and_destroyed,
    a_name_is_used_once,
    a_container_of_nothing_is_refused,
    output_is_complete_and_the_streams_are_apart,
    exit_codes_are_the_commands_own,
    a_program_that_is_not_there_cannot_be_started,
    megabytes_of_output_arrive,
    environment_and_workdir_are_given,
    standard_input_is_empty,
    stop_lets_the_command_end_itself,
    stop_kills_what_does_not_listen,
    stop_of_what_does_not_run_is_no_error,
    destroy_ends_what_runs,
    a_snapshot_hands_files_on,
    a_chain_of_snapshots_keeps_the_images_own_environment,
    a_snapshot_is_found_listed_and_removed,
    a_snapshot_in_use_can_be_removed,
    a_snapshot_can_be_replaced,
    what_runs_or_is_gone_is_not_committed,
    injected_files_are_there,
    injecting_does_not_leave_the_target,
    a_broken_tar_is_the_inputs_fault,
    detaching_leaves_the_container_alone,
);

/// The first of the Engines that the tests are given.
async fn docker_engine() -> DockerEngine {
    let address = tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_DOCKER_1")).await.unwrap();
    DockerEngine::connect(Some(&address)).await.unwrap()
}
