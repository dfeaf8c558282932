//! What one would write first: a loop over the Engine's API. And single calls of it, bare.

use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::{ContainerConfig, ContainerCreateBody, ExecConfig, HostConfig};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptionsBuilder, WaitContainerOptions,
};
use bollard::{ClientVersion, Docker};
use futures_util::StreamExt as _;
use uuid::Uuid;

use crate::failure::{Failure, Result};
use crate::stand::Stand;

/// A commit of 100 MB takes a second; a machine that swaps takes longer.
const TIMEOUT_SECS: u64 = 120;

/// An Engine, asked directly.
pub(crate) struct Naive {
    docker: Docker,
}

impl Naive {
    pub(crate) fn connect(stand: &Stand) -> Result<Self> {
        // 1.41 is what both sides speak to the oldest Engine there is.
        let version = ClientVersion { major_version: 1, minor_version: 41 };
        Ok(Self { docker: Docker::connect_with_unix(&stand.engine, TIMEOUT_SECS, &version)? })
    }

    /// Makes a container and starts its command; its name.
    pub(crate) async fn start(&self, image: &str, command: &[&str]) -> Result<String> {
        let name = format!("naive-{}", Uuid::new_v4().simple());
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(command.iter().map(|&word| word.to_owned()).collect()),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..Default::default() }),
            ..Default::default()
        };
        self.docker.create_container(Some(CreateContainerOptionsBuilder::new().name(&name).build()), body).await?;
        self.docker.start_container(&name, None).await?;
        Ok(name)
    }

    /// Waits for a container's end.
    pub(crate) async fn wait(&self, name: &str) -> Result<()> {
        let mut ended = Box::pin(self.docker.wait_container(name, None::<WaitContainerOptions>));
        match ended.next().await {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(Failure::new(format!("{name}: no answer to wait"))),
        }
    }

    /// What a container that has ended had written.
    pub(crate) async fn logs(&self, name: &str) -> Result<String> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let mut frames = Box::pin(self.docker.logs(name, Some(options)));
        let mut text = Vec::new();
        while let Some(frame) = frames.next().await {
            text.extend_from_slice(&frame?.into_bytes());
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Commits a container that has ended; the image's id.
    pub(crate) async fn commit(&self, name: &str) -> Result<String> {
        let options = CommitContainerOptionsBuilder::new().container(name).pause(false).build();
        Ok(self.docker.commit_container(options, ContainerConfig::default()).await?.id)
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        Ok(self.docker.remove_container(name, Some(options)).await?)
    }

    pub(crate) async fn remove_image(&self, id: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        self.docker.remove_image(id, Some(options), None).await?;
        Ok(())
    }

    /// A chain of commands, each on what the one before left: create, start, wait, logs, commit, remove. What each
    /// wrote.
    pub(crate) async fn chain(&self, image: &str, commands: &[Vec<&str>]) -> Result<Vec<String>> {
        let (mut image, mut logs) = (image.to_owned(), Vec::new());
        for command in commands {
            let name = self.start(&image, command).await?;
            self.wait(&name).await?;
            logs.push(self.logs(&name).await?);
            image = self.commit(&name).await?;
            self.remove(&name).await?;
        }
        // Its parents have no names: they go with it.
        self.remove_image(&image).await?;
        Ok(logs)
    }

    /// `docker exec` without the start of the `docker` program: its two calls. What the command wrote.
    pub(crate) async fn exec(&self, name: &str, command: &[&str]) -> Result<String> {
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.iter().map(|&word| word.to_owned()).collect()),
            ..Default::default()
        };
        let exec = self.docker.create_exec(name, config).await?;
        let StartExecResults::Attached { mut output, .. } = self.docker.start_exec(&exec.id, None).await? else {
            return Err(Failure::new("the exec was not attached"));
        };
        let mut text = Vec::new();
        while let Some(frame) = output.next().await {
            text.extend_from_slice(&LogOutput::into_bytes(frame?));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
