//! What every Engine must do: one suite for Docker (on a real daemon) and for the fake, each in both of its ways.
//!
//! `commands`, `snapshots` and `inject` hold for both ways, `between` and `adoption` where there are supervisors;
//! `docker` and `docker_faults` are what only a real Engine can show, `fake` what only a fake can.

#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(unreachable_pub)] // `pub` says here what a module offers to the next

#[path = "engine_contract/adoption.rs"]
mod adoption;
#[path = "engine_contract/bench.rs"]
mod bench;
#[path = "engine_contract/between.rs"]
mod between;
#[path = "engine_contract/commands.rs"]
mod commands;
#[path = "engine_contract/docker.rs"]
mod docker;
#[path = "engine_contract/docker_faults.rs"]
mod docker_faults;
#[path = "engine_contract/docker_kit.rs"]
mod docker_kit;
#[path = "engine_contract/fake.rs"]
mod fake;
#[path = "engine_contract/inject.rs"]
mod inject;
#[path = "../../tests/services.rs"]
mod services;
#[path = "engine_contract/snapshots.rs"]
mod snapshots;

/// One test per rule, on a bench made with this kit.
macro_rules! tests {
    ($kit:expr, $($module:ident::$rule:ident),*) => {
        $(#[tokio::test]
        async fn $rule() {
            crate::$module::$rule(crate::bench::Bench::new($kit).await).await;
        })*
    };
}

/// A suite on the fake and on Docker, in these ways: whether a supervisor is done without.
macro_rules! suite {
    ($name:ident, direct: $direct:expr, $($module:ident::$rule:ident),* $(,)?) => {
        mod $name {
            mod on_the_fake {
                tests!(crate::fake::kit($direct), $($module::$rule),*);
            }
            mod on_docker {
                tests!(crate::docker_kit::kit($direct), $($module::$rule),*);
            }
        }
    };
}

/// What holds in both ways.
macro_rules! both_ways {
    ($($module:ident::$rule:ident),* $(,)?) => {
        suite!(supervised, direct: false, $($module::$rule),*);
        suite!(direct, direct: true, $($module::$rule),*);
    };
}

both_ways!(
    commands::info_names_the_engine,
    commands::an_image_is_ensured_twice_with_one_id,
    commands::an_unknown_image_is_the_requests_fault,
    commands::a_container_is_created_listed_and_destroyed,
    commands::a_name_is_used_once,
    commands::a_container_of_nothing_is_refused,
    commands::output_is_complete_and_the_streams_are_apart,
    commands::output_says_when_it_was_read,
    commands::exit_codes_are_the_commands_own,
    commands::a_program_that_is_not_there_cannot_be_started,
    commands::megabytes_of_output_arrive,
    commands::environment_and_workdir_are_given,
    commands::standard_input_is_empty,
    commands::stop_lets_the_command_end_itself,
    commands::stop_kills_what_does_not_listen,
    commands::a_stop_without_grace_overtakes_one_that_waits,
    commands::stop_of_what_does_not_run_is_no_error,
    commands::destroy_ends_what_runs,
    commands::detaching_leaves_the_container_alone,
    snapshots::a_snapshot_hands_files_on,
    snapshots::a_chain_of_snapshots_keeps_the_images_own_environment,
    snapshots::a_snapshot_is_found_listed_and_removed,
    snapshots::a_snapshot_in_use_can_be_removed,
    snapshots::a_snapshot_can_be_replaced,
    snapshots::what_runs_or_is_gone_is_not_committed,
    snapshots::what_is_the_containers_own_is_not_committed,
    inject::injected_files_are_there,
    inject::injecting_does_not_leave_the_target,
    inject::a_broken_tar_is_the_inputs_fault,
);

suite!(
    only_direct,
    direct: true,
    commands::direct_detaching_holds_no_output_up,
    commands::direct_containers_are_used_once,
    commands::p18_direct_commands_have_no_lease,
);

suite!(
    only_supervised,
    direct: false,
    between::the_way_is_by_a_supervisor,
    between::a_container_carries_out_one_command_after_another,
    between::a_command_that_could_not_be_started_is_in_nobodys_way,
    between::a_signal_is_told_from_an_exit,
    between::how_long_it_ran_is_told,
    between::cleaning_takes_away_what_is_not_handed_on,
    between::a_volume_with_the_images_files_is_not_gone_on_with,
    between::a_container_goes_on_after_its_commit,
    between::files_are_injected_between_two_commands,
    between::limits_are_changed_in_place,
    between::p16_a_command_blocks_behind_what_is_not_acknowledged,
    between::p17_a_command_past_its_limit_is_ended_by_its_supervisor,
    between::p18_a_command_is_ended_before_its_lease_is,
    between::p18_a_lease_is_extended_and_never_shortened,
    between::p18_nothing_starts_behind_its_lease,
    between::what_is_not_there_is_told_as_gone,
    adoption::p10_a_command_is_adopted_in_the_middle_of_its_output,
    adoption::p16_an_exit_that_nobody_heard_is_found,
    adoption::p10_an_adopted_command_is_stopped,
    adoption::p10_an_idle_container_is_adopted,
    adoption::p10_what_is_gone_is_not_adopted,
    adoption::p17_a_command_past_its_limit_ends_without_its_worker,
    adoption::p18_a_lease_ends_without_a_worker,
);
