//! How much CPU the node has, as Nomad counts it: what a task's percentage is turned into MHz with.

use serde::{Deserialize, Serialize};

/// The node's compute capacity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// MHz of all cores together.
    pub total_mhz: u64,
    /// Number of cores.
    pub cores: u32,
}

/// One core as Nomad's topology tells of it, all speeds in MHz; 0 is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Core {
    /// Its speed without boost.
    pub base_mhz: u64,
    /// Its speed with boost.
    pub max_mhz: u64,
    /// Its speed as far as could be guessed.
    pub guess_mhz: u64,
}

impl Compute {
    /// From the cores, or from the operator's own number if it is not 0.
    #[must_use]
    pub fn of(cores: &[Core], override_mhz: u64) -> Self {
        let speed = |core: &Core| {
            [core.base_mhz, core.max_mhz, core.guess_mhz]
                .into_iter()
                .find(|mhz| *mhz > 0)
        };
        let sum = cores.iter().filter_map(speed).sum();
        Self {
            total_mhz: if override_mhz > 0 { override_mhz } else { sum },
            cores: u32::try_from(cores.len()).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_speed_of_each_core_counts() {
        let cores = [
            Core {
                base_mhz: 1000,
                max_mhz: 3000,
                guess_mhz: 2000,
            },
            Core {
                base_mhz: 0,
                max_mhz: 3000,
                guess_mhz: 2000,
            },
            Core {
                base_mhz: 0,
                max_mhz: 0,
                guess_mhz: 2000,
            },
            Core::default(),
        ];
        assert_eq!(
            Compute::of(&cores, 0),
            Compute {
                total_mhz: 6000,
                cores: 4
            }
        );
        assert_eq!(
            Compute::of(&cores, 500),
            Compute {
                total_mhz: 500,
                cores: 4
            }
        );
    }
}
