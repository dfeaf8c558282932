//! What the tests need of a Docker Engine beyond the trait.

use std::collections::HashMap;
use std::sync::Arc;

use bollard::Docker;
use bollard::query_parameters::{BuildImageOptionsBuilder, ListContainersOptionsBuilder};
use bytes::Bytes;
use futures_util::{TryStreamExt, future};
use longshore_worker::engine::docker::DockerEngine;

use crate::bench::{Bench, IMAGE, Kit, Paths, Volumes};
use crate::services;

/// The first of the Engines that the tests are given.
pub async fn address() -> String {
    tokio::task::spawn_blocking(|| services::env("LONGSHORE_TEST_DOCKER_1")).await.unwrap()
}

/// A client of the test's own.
pub async fn behind() -> Docker {
    let address = address().await;
    Docker::connect_with_unix(&address, 60, bollard::API_DEFAULT_VERSION).unwrap().negotiate_version().await.unwrap()
}

pub fn kit(direct: bool) -> Kit<DockerEngine> {
    Kit {
        connect: Arc::new(|| Box::pin(async { DockerEngine::connect(Some(&address().await)).await.unwrap() })),
        image: Arc::new(|files, volumes| Box::pin(build(files, volumes))),
        left_of: Arc::new(|worker| {
            Box::pin(async move {
                let filters = HashMap::from([("name", vec![format!("longshore.{worker}")])]);
                let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
                let left = behind().await.list_containers(Some(options)).await.unwrap();
                left.into_iter().flat_map(|container| container.names.unwrap_or_default()).collect()
            })
        }),
        direct,
    }
}

pub async fn supervised() -> Bench<DockerEngine> {
    Bench::new(kit(false)).await
}

/// Once in each way.
pub async fn both_ways() -> [Bench<DockerEngine>; 2] {
    [Bench::new(kit(false)).await, Bench::new(kit(true)).await]
}

/// The image of the tests with these files and VOLUMEs. It stays on the test's Engine, under a name made of what is in
/// it, so that others need not build it again.
async fn build(files: Paths, volumes: Volumes) -> String {
    let dockerfile = format!("FROM {IMAGE}\nCOPY files/ /\nVOLUME {volumes:?}\n");
    let mut tar = tar::Builder::new(Vec::new());
    let mut append = |path: &str, content: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    };
    append("Dockerfile", &dockerfile);
    append("files/built-for-a-test", "");
    for (path, content) in files {
        append(&format!("files{path}"), content);
    }
    let tar = tar.into_inner().unwrap();
    let reference = format!("longshore-test/built:{}", &blake3::hash(&tar).to_hex()[..32]);
    let options = BuildImageOptionsBuilder::new().t(&reference).build();
    let body = bollard::body_full(Bytes::from(tar));
    behind().await.build_image(options, None, Some(body)).try_for_each(|_| future::ok(())).await.unwrap();
    reference
}
