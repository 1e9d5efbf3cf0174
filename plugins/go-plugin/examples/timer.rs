//! A whole Nomad task driver whose tasks are timers: a task runs for `DURATION_MS` of its environment and exits with
//! `EXIT_CODE`. It shows what a plugin looks like, and is what the protocol's tests launch. A timer needs no process, so
//! it survives the plugin: the handle says when it ends.
//! For the tests, more of the environment makes a start misbehave: see [`Timers::misbehave`].

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    process::{Command, ExitCode},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt, stream::BoxStream};
use go_plugin::{Agreement, MESSAGE_BYTES_MAX, Plugin};
use prost::Message;
use prost_types::{Any, Timestamp};
use proto::{
    google::rpc,
    nomad::{
        base::{
            ConfigSchemaRequest, ConfigSchemaResponse, PluginInfoRequest, PluginInfoResponse, PluginType,
            SetConfigRequest, SetConfigResponse,
            base_plugin_server::{BasePlugin, BasePluginServer},
        },
        driver::{
            driver_server::{Driver, DriverServer},
            fingerprint_response::HealthState,
            *,
        },
        hclspec::{Attr, Object, Spec, spec::Block},
        structs::{Attribute, RecoverableError, attribute},
    },
};
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

fn main() -> ExitCode {
    let plugin = Plugin {
        name: "timer",
        agreement: Agreement::NOMAD,
    };
    go_plugin::run(&plugin, || async {
        let timers = Timers(Arc::new(State {
            tasks: Mutex::default(),
            events: broadcast::Sender::new(64),
        }));
        Ok::<_, Box<dyn Error + Send + Sync>>(
            Routes::new(BasePluginServer::new(Base).max_decoding_message_size(MESSAGE_BYTES_MAX))
                .add_service(DriverServer::new(timers).max_decoding_message_size(MESSAGE_BYTES_MAX)),
        )
    })
}

/// Who this plugin is.
struct Base;

#[tonic::async_trait]
impl BasePlugin for Base {
    async fn plugin_info(&self, _: Request<PluginInfoRequest>) -> Result<Response<PluginInfoResponse>, Status> {
        Ok(Response::new(PluginInfoResponse {
            r#type: PluginType::Driver.into(),
            plugin_api_versions: vec!["v0.1.0".into()],
            plugin_version: env!("CARGO_PKG_VERSION").into(),
            name: "timer".into(),
        }))
    }

    async fn config_schema(&self, _: Request<ConfigSchemaRequest>) -> Result<Response<ConfigSchemaResponse>, Status> {
        Ok(Response::new(ConfigSchemaResponse {
            spec: Some(one_attribute("greeting")),
        }))
    }

    async fn set_config(&self, request: Request<SetConfigRequest>) -> Result<Response<SetConfigResponse>, Status> {
        let request = request.into_inner();
        tracing::info!(
            bytes = request.msgpack_config.len(),
            live = request.nomad_config.is_some(),
            "configured"
        );
        Ok(Response::new(SetConfigResponse {}))
    }
}

/// A schema with one optional string.
fn one_attribute(name: &str) -> Spec {
    let attribute = Attr {
        name: name.into(),
        r#type: "string".into(),
        required: false,
    };
    let attribute = Spec {
        block: Some(Block::Attr(attribute)),
    };
    Spec {
        block: Some(Block::Object(Object {
            attributes: HashMap::from([(name.to_owned(), attribute)]),
        })),
    }
}

/// The driver.
#[derive(Clone)]
struct Timers(Arc<State>);

struct State {
    tasks: Mutex<BTreeMap<String, Timer>>,
    events: broadcast::Sender<DriverTaskEvent>,
}

/// A task.
#[derive(Clone)]
struct Timer {
    name: String,
    started_ms: u64,
    ends_ms: u64,
    exit_code: i32,
    /// The signal that ended it early.
    signal: watch::Sender<Option<i32>>,
}

impl Timer {
    /// Waits for its end. May be dropped and called again: nothing is lost by it.
    async fn ended(&self) -> ExitResult {
        let mut signal = self.signal.subscribe();
        let left = Duration::from_millis(self.ends_ms.saturating_sub(now_ms()));
        tokio::select! {
            () = tokio::time::sleep(left) => ExitResult { exit_code: self.exit_code, ..ExitResult::default() },
            signal = signal.wait_for(Option::is_some) => {
                let signal = signal.ok().and_then(|signal| *signal).unwrap_or_default();
                ExitResult { exit_code: 128 + signal, signal, oom_killed: false }
            }
        }
    }

    fn handle(&self, config: TaskConfig) -> TaskHandle {
        let driver_state = format!("{} {} {}", self.started_ms, self.ends_ms, self.exit_code).into_bytes();
        TaskHandle {
            version: 1,
            config: Some(config),
            state: TaskState::Running.into(),
            driver_state,
        }
    }

    fn recovered(handle: &TaskHandle) -> Option<Self> {
        let text = str::from_utf8(&handle.driver_state).ok()?;
        let mut numbers = text.split(' ');
        Some(Self {
            name: handle.config.as_ref()?.name.clone(),
            started_ms: numbers.next()?.parse().ok()?,
            ends_ms: numbers.next()?.parse().ok()?,
            exit_code: numbers.next()?.parse().ok()?,
            signal: watch::Sender::new(None),
        })
    }
}

impl Timers {
    fn tasks(&self) -> MutexGuard<'_, BTreeMap<String, Timer>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self, id: &str) -> Result<Timer, Status> {
        self.tasks()
            .get(id)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("no task {id}")))
    }

    /// What a test asks a start to do beside starting.
    fn misbehave(config: &TaskConfig) -> Result<(), Status> {
        let asked = |name: &str| config.env.get(name);
        if let Some(message) = asked("FAIL_RECOVERABLY") {
            return Err(recoverable(message));
        }
        assert!(!config.env.contains_key("PANIC"), "asked to panic");
        if asked("PRINT").is_some() {
            print_a_mebibyte();
        }
        if let Some(seconds) = asked("LEAVE_CHILD") {
            // On purpose with this process's own standard streams. It ends by itself.
            let child = Command::new("sleep").arg(seconds).spawn();
            tracing::info!(started = child.is_ok(), "left a child");
        }
        Ok(())
    }
}

/// More than a pipe holds: this blocks for ever if anything of it reaches the host.
fn print_a_mebibyte() {
    use std::io::Write;
    let text = vec![b'x'; 1024 * 1024];
    let _ = std::io::stdout().write_all(&text);
    let _ = std::io::stderr().write_all(&text);
}

/// A failure after which Nomad may try again.
fn recoverable(message: &str) -> Status {
    let detail = Any {
        type_url: "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError".into(),
        value: RecoverableError { recoverable: true }.encode_to_vec(),
    };
    let code = Code::FailedPrecondition;
    let status = rpc::Status {
        code: code.into(),
        message: message.into(),
        details: vec![detail],
    };
    Status::with_details(code, message, status.encode_to_vec().into())
}

#[expect(clippy::disallowed_methods, reason = "an example has no clock to be given")]
fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn timestamp(ms: u64) -> Timestamp {
    (SystemTime::UNIX_EPOCH + Duration::from_millis(ms)).into()
}

type Answer<T> = Result<Response<T>, Status>;
type Out<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Driver for Timers {
    type FingerprintStream = Out<FingerprintResponse>;
    type TaskStatsStream = Out<TaskStatsResponse>;
    type TaskEventsStream = Out<DriverTaskEvent>;
    type ExecTaskStreamingStream = Out<ExecTaskStreamingResponse>;

    async fn init(&self, _: Request<InitRequest>) -> Answer<InitResponse> {
        Ok(Response::new(InitResponse {}))
    }

    async fn task_config_schema(&self, _: Request<TaskConfigSchemaRequest>) -> Answer<TaskConfigSchemaResponse> {
        Ok(Response::new(TaskConfigSchemaResponse {
            spec: Some(one_attribute("label")),
        }))
    }

    async fn capabilities(&self, _: Request<CapabilitiesRequest>) -> Answer<CapabilitiesResponse> {
        let capabilities = DriverCapabilities {
            send_signals: true,
            exec: true,
            ..DriverCapabilities::default()
        };
        Ok(Response::new(CapabilitiesResponse {
            capabilities: Some(capabilities),
        }))
    }

    async fn fingerprint(&self, _: Request<FingerprintRequest>) -> Answer<Self::FingerprintStream> {
        let precision = Attribute {
            value: Some(attribute::Value::IntVal(1)),
            unit: "ms".into(),
        };
        let first = FingerprintResponse {
            attributes: HashMap::from([("driver.timer.precision".to_owned(), precision)]),
            health: HealthState::Healthy.into(),
            health_description: "Time passes.".into(),
            err: String::new(),
        };
        // Never ends: Nomad would ask again at once, and for ever.
        Ok(Response::new(
            tokio_stream::once(Ok(first)).chain(futures::stream::pending()).boxed(),
        ))
    }

    async fn recover_task(&self, request: Request<RecoverTaskRequest>) -> Answer<RecoverTaskResponse> {
        let handle = request.into_inner().handle.unwrap_or_default();
        let timer = Timer::recovered(&handle).ok_or_else(|| Status::invalid_argument("not a handle of this driver"))?;
        self.tasks().insert(handle.config.unwrap_or_default().id, timer);
        Ok(Response::new(RecoverTaskResponse {}))
    }

    async fn start_task(&self, request: Request<StartTaskRequest>) -> Answer<StartTaskResponse> {
        let config = request
            .into_inner()
            .task
            .ok_or_else(|| Status::invalid_argument("no task"))?;
        Self::misbehave(&config)?;
        let number = |name: &str| {
            config
                .env
                .get(name)
                .and_then(|text| text.parse::<u32>().ok())
                .unwrap_or_default()
        };
        let started_ms = now_ms();
        let timer = Timer {
            name: config.name.clone(),
            started_ms,
            ends_ms: started_ms + u64::from(number("DURATION_MS")),
            exit_code: number("EXIT_CODE").cast_signed(),
            signal: watch::Sender::new(None),
        };
        self.tasks().insert(config.id.clone(), timer.clone());
        let _ = self.0.events.send(DriverTaskEvent {
            task_id: config.id.clone(),
            alloc_id: config.alloc_id.clone(),
            task_name: config.name.clone(),
            timestamp: Some(timestamp(started_ms)),
            message: "Time starts.".into(),
            annotations: HashMap::new(),
        });
        let handle = Some(timer.handle(config));
        Ok(Response::new(StartTaskResponse {
            handle,
            ..StartTaskResponse::default()
        }))
    }

    async fn wait_task(&self, request: Request<WaitTaskRequest>) -> Answer<WaitTaskResponse> {
        let result = self.task(&request.into_inner().task_id)?.ended().await;
        Ok(Response::new(WaitTaskResponse {
            result: Some(result),
            err: String::new(),
        }))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> Answer<StopTaskResponse> {
        if let Ok(timer) = self.task(&request.into_inner().task_id) {
            timer.signal.send_replace(Some(15));
        }
        Ok(Response::new(StopTaskResponse {}))
    }

    async fn destroy_task(&self, request: Request<DestroyTaskRequest>) -> Answer<DestroyTaskResponse> {
        self.tasks().remove(&request.into_inner().task_id);
        Ok(Response::new(DestroyTaskResponse {}))
    }

    async fn inspect_task(&self, request: Request<InspectTaskRequest>) -> Answer<InspectTaskResponse> {
        let id = request.into_inner().task_id;
        let timer = self.task(&id)?;
        let ended = timer.signal.borrow().is_some() || timer.ends_ms <= now_ms();
        let task = TaskStatus {
            id,
            name: timer.name.clone(),
            state: if ended { TaskState::Exited } else { TaskState::Running }.into(),
            started_at: Some(timestamp(timer.started_ms)),
            completed_at: Some(if ended {
                timestamp(timer.ends_ms)
            } else {
                Timestamp::default()
            }),
            result: Some(if ended {
                timer.ended().await
            } else {
                ExitResult::default()
            }),
        };
        let driver = Some(TaskDriverStatus::default());
        Ok(Response::new(InspectTaskResponse {
            task: Some(task),
            driver,
            network_override: None,
        }))
    }

    async fn task_stats(&self, request: Request<TaskStatsRequest>) -> Answer<Self::TaskStatsStream> {
        let request = request.into_inner();
        let timer = self.task(&request.task_id)?;
        let interval = request
            .collection_interval
            .and_then(|it| Duration::try_from(it).ok())
            .unwrap_or_default();
        let ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
        let samples = tokio_stream::wrappers::IntervalStream::new(ticks).map(move |_| {
            let usage = TaskResourceUsage {
                cpu: Some(CpuUsage::default()),
                memory: Some(MemoryUsage::default()),
            };
            let stats = TaskStats {
                id: request.task_id.clone(),
                timestamp: Some(timestamp(now_ms())),
                agg_resource_usage: Some(usage),
                resource_usage_by_pid: HashMap::new(),
            };
            Ok(TaskStatsResponse { stats: Some(stats) })
        });
        let end = async move { timer.ended().await };
        Ok(Response::new(samples.take_until(Box::pin(end)).boxed()))
    }

    async fn task_events(&self, _: Request<TaskEventsRequest>) -> Answer<Self::TaskEventsStream> {
        let events = BroadcastStream::new(self.0.events.subscribe());
        // A reader that fell behind loses events, not the stream.
        Ok(Response::new(
            events.filter_map(async |event| event.ok().map(Ok)).boxed(),
        ))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn signal_task(&self, request: Request<SignalTaskRequest>) -> Answer<SignalTaskResponse> {
        let request = request.into_inner();
        let number = match request.signal.as_str() {
            "SIGKILL" => 9,
            "SIGTERM" => 15,
            other => return Err(Status::invalid_argument(format!("a timer does not understand {other}"))),
        };
        self.task(&request.task_id)?.signal.send_replace(Some(number));
        Ok(Response::new(SignalTaskResponse {}))
    }

    async fn exec_task(&self, request: Request<ExecTaskRequest>) -> Answer<ExecTaskResponse> {
        let request = request.into_inner();
        self.task(&request.task_id)?;
        let stdout = request.command.join(" ").into_bytes();
        Ok(Response::new(ExecTaskResponse {
            stdout,
            stderr: Vec::new(),
            result: Some(ExitResult::default()),
        }))
    }

    async fn exec_task_streaming(
        &self,
        request: Request<Streaming<ExecTaskStreamingRequest>>,
    ) -> Answer<Self::ExecTaskStreamingStream> {
        let mut input = request.into_inner();
        let setup = input.message().await?.and_then(|first| first.setup);
        self.task(
            &setup
                .ok_or_else(|| Status::invalid_argument("the first message has no setup"))?
                .task_id,
        )?;
        Ok(Response::new(echo(input).boxed()))
    }

    async fn create_network(&self, _: Request<CreateNetworkRequest>) -> Answer<CreateNetworkResponse> {
        Err(Status::unimplemented("timers have no network"))
    }

    async fn destroy_network(&self, _: Request<DestroyNetworkRequest>) -> Answer<DestroyNetworkResponse> {
        Err(Status::unimplemented("timers have no network"))
    }
}

/// The input as output, and at its end an exit with 0.
fn echo(input: Streaming<ExecTaskStreamingRequest>) -> impl Stream<Item = Result<ExecTaskStreamingResponse, Status>> {
    let output = input.filter_map(async |request| {
        let stdin = request.ok()?.stdin?;
        Some(if stdin.close { None } else { Some(stdin.data) })
    });
    let output = output
        .take_while(|data| std::future::ready(data.is_some()))
        .map(|data| {
            let stdout = ExecTaskStreamingIoOperation {
                data: data.unwrap_or_default(),
                close: false,
            };
            Ok(ExecTaskStreamingResponse {
                stdout: Some(stdout),
                ..ExecTaskStreamingResponse::default()
            })
        });
    let closed = || {
        Some(ExecTaskStreamingIoOperation {
            data: Vec::new(),
            close: true,
        })
    };
    let end = [
        ExecTaskStreamingResponse {
            stdout: closed(),
            ..ExecTaskStreamingResponse::default()
        },
        ExecTaskStreamingResponse {
            stderr: closed(),
            ..ExecTaskStreamingResponse::default()
        },
        ExecTaskStreamingResponse {
            exited: true,
            result: Some(ExitResult::default()),
            ..ExecTaskStreamingResponse::default()
        },
    ];
    output.chain(futures::stream::iter(end.map(Ok)))
}
