//! How a ChunkServer is to run: from a TOML file or from the command line.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use gofs_wakeful::CpuLatency;
use serde::Deserialize;

use crate::store::StoreOptions;

/// All settings. [`Config::default`] shows the defaults; `data` and `meta` have none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients and other servers connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// `HOST:PORT` under which others reach this server; `None`: the address it listens on.
    pub advertise: Option<String>,
    /// Data directories, best one for each disk.
    pub data: Vec<PathBuf>,
    /// `HOST:PORT` of MetaServers.
    pub meta: Vec<String>,
    /// What placement goes by, for example `rack = "r1"`.
    pub labels: BTreeMap<String, String>,
    /// Bytes that the scrubber reads per second from each disk; 0 switches it off.
    pub scrub_bytes_per_s: u64,
    /// Seconds from the end of one pass of the scrubber to the next.
    pub scrub_interval_s: u64,
    /// Bytes of each file system that chunks leave free; `None`: 1 %, at most 1 GiB.
    pub reserve_bytes: Option<u64>,
    /// Chunks up to this many bytes are packed together; larger ones get a file of their own.
    pub small_chunk_bytes: u32,
    /// Bytes of the files that small chunks are packed into, at most.
    pub segment_bytes: u32,
    /// Whether processors are kept awake while requests flow.
    pub cpu_latency: CpuLatency,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7470),
            advertise: None,
            data: Vec::new(),
            meta: Vec::new(),
            labels: BTreeMap::new(),
            scrub_bytes_per_s: 10 << 20,
            scrub_interval_s: 24 * 3600,
            reserve_bytes: None,
            small_chunk_bytes: 64 << 10,
            segment_bytes: 64 << 20,
            cpu_latency: CpuLatency::default(),
        }
    }
}

impl Config {
    /// With defaults for everything else.
    pub fn new(listen: SocketAddr, data: Vec<PathBuf>, meta: Vec<String>) -> Config {
        Config { listen, data, meta, ..Config::default() }
    }

    /// Reads a file. An unknown or wrong key is an error that shows its line.
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    /// Refuses what cannot work, in words that say what to change.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.data.is_empty() {
            bail!("no data directory: give at least one (--data DIR, or data = [\"DIR\"])");
        }
        for (i, dir) in self.data.iter().enumerate() {
            if dir.as_os_str().is_empty() {
                bail!("a data directory without a name: check the commas in --data");
            }
            if self.data[..i].contains(dir) {
                bail!("data directory {} is given twice", dir.display());
            }
        }
        if self.meta.is_empty() {
            bail!("no MetaServer: give at least one (--meta HOST:PORT, or meta = [\"HOST:PORT\"])");
        }
        for address in self.meta.iter().chain(&self.advertise) {
            check_address(address)?;
        }
        if self.advertise.is_none() && self.listen.ip().is_unspecified() {
            bail!(
                "listening on {} tells nobody where this server is: set advertise (--advertise HOST:PORT)",
                self.listen
            );
        }
        if !(4096..=1 << 20).contains(&self.small_chunk_bytes) {
            bail!("small_chunk_bytes is {}, but must be from 4096 to 1048576", self.small_chunk_bytes);
        }
        if !(1 << 20..=1 << 30).contains(&self.segment_bytes) {
            bail!("segment_bytes is {}, but must be from 1048576 to 1073741824", self.segment_bytes);
        }
        Ok(())
    }

    pub(crate) fn store_options(&self) -> StoreOptions {
        StoreOptions {
            segment_bytes: self.segment_bytes,
            small_blocks: self.small_chunk_bytes / 4096,
            reserve_bytes: self.reserve_bytes,
            ..StoreOptions::default()
        }
    }
}

fn check_address(address: &str) -> anyhow::Result<()> {
    let port =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port != 0 => Ok(()),
        _ => bail!("{address:?} is not HOST:PORT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Config {
        Config::new("127.0.0.1:0".parse().unwrap(), vec!["/a".into()], vec!["meta:7460".into()])
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk.toml");
        std::fs::write(&path, "data = [\"/a\"]\nmeta = [\"m:1\"]\nscrubbing = true\n").unwrap();
        let error = format!("{:#}", Config::load(&path).unwrap_err());
        assert!(
            error.contains("chunk.toml") && error.contains("scrubbing") && error.contains("line 3"),
            "{error}"
        );
    }

    #[test]
    fn a_whole_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chunk.toml");
        let text = "listen = \"10.0.0.1:7470\"\ndata = [\"/a\", \"/b\"]\nmeta = [\"m:7460\"]\n\
                    scrub_bytes_per_s = 1\ncpu_latency = \"off\"\n[labels]\nrack = \"r1\"\n";
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        config.validate().unwrap();
        assert_eq!(
            (config.data.len(), config.labels["rack"].as_str(), config.scrub_bytes_per_s, config.cpu_latency),
            (2, "r1", 1, CpuLatency::Off)
        );
    }

    #[test]
    fn what_cannot_work_is_refused() {
        valid().validate().unwrap();
        let mut cases = vec![Config { data: vec![], ..valid() }, Config { meta: vec![], ..valid() }];
        cases.push(Config { data: vec!["/a".into(), "/a".into()], ..valid() });
        cases.push(Config { meta: vec!["meta".into()], ..valid() });
        cases.push(Config { meta: vec![":7460".into()], ..valid() });
        cases.push(Config { advertise: Some("here".into()), ..valid() });
        cases.push(Config { listen: "0.0.0.0:7470".parse().unwrap(), ..valid() });
        cases.push(Config { segment_bytes: 5, ..valid() });
        cases.push(Config { small_chunk_bytes: 0, ..valid() });
        for config in cases {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
