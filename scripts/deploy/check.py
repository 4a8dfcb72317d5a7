"""What scripts/check-deploy runs: each file of deploy/ is read by the program that it is for, and held against a started server.

A check is a function that raises `Refused`. `--self-test` runs each on copies that are broken in one place, and fails if one is let through.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import kubernetes_validate
import promql_parser
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(sys.executable).parent
MODEL = os.environ.get("VECMEMO_MODEL", "all-MiniLM-L6-v2")
READY_WITHIN_S = 120
# What proxies pass on to the outside.
PUBLIC = {
    "/", "/embed", "/v1/embeddings", "/v1/models", "/tokenize", "/lookup", "/search", "/similar", "/info", "/health", "/openapi.json",
}
# What they do not, of those paths: the page for operators.
INSIDE = {("GET", "/")}
# Ways to write a path that one reader takes for another one than the next.
CROOKED = (
    "//admin/cache", "/./admin/cache", "/embed/../admin/cache", "/embed/..%2fadmin%2fcache", "/%61dmin/cache", "/admin%2fcache",
    "/admin/models/..%2f..%2fembed", "/entries/..%2fembed", "/embed/../../metrics", "/embed;/../stats", "/STATS", "/stats?/embed", "/embed%0a",
)
# The most of systemd's exposure, in tenths, that the unit may have.
EXPOSURE_MAX = 17
# What Prometheus itself adds.
OF_PROMETHEUS = {"up", "ALERTS"}
LABELS_OF_SCRAPES = {"job", "instance", "namespace", "pod", "model"}
YAML_RULES = (
    "{extends: default, rules: {line-length: {max: 150}, document-start: disable, comments: {min-spaces-from-content: 1},"
    " indentation: {indent-sequences: true}}}"
)


class Refused(Exception):
    """A file is not as it has to be."""


def run(*command, stdin=None):
    """What a command says, if it succeeds."""
    command = [str(part) for part in command]
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    if done.returncode != 0:
        raise Refused(f"{Path(command[0]).name}: {done.stdout.strip()[-3000:]}")
    return done.stdout


def must(condition, complaint):
    if not condition:
        raise Refused(complaint)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def wait_until(what, answers, process):
    until = time.monotonic() + READY_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            return answers()
        must(process.poll() is None, f"{what} ended with {process.returncode} before it answered")
        must(time.monotonic() < until, f"{what} did not answer within {READY_WITHIN_S} s")
        time.sleep(0.05)


@contextlib.contextmanager
def running(what, command, log, answers):
    """A program while it is needed; `answers` raises OSError as long as it does not."""
    with open(log, "wb") as output:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            try:
                wait_until(what, answers, process)
            except Refused as refused:
                raise Refused(f"{refused}: {log.read_text(errors='replace')[-2000:]}") from None
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Server:
    """A vecmemo with a shared tier and reuse, and what it says of itself."""

    def __init__(self, binary, work):
        self.binary, self.work = binary, work
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = run(binary, "config")
        self.variables = set(re.findall(r"\bVECMEMO_[A-Z_]+", self.settings)) | {"VECMEMO_CONFIG"}

    @contextlib.contextmanager
    def serving(self):
        tier = free_port()
        config = self.work / "served.toml"
        config.write_text("[policies.default]\nreuse = { min_similarity = 0.95 }\n")
        redis = ["redis-server", "--port", tier, "--bind", "127.0.0.1", "--save", "", "--dir", self.work]
        serve = [self.binary, "serve", "--config", config, "--listen", f"127.0.0.1:{self.port}", "--data-dir", self.work / "data"]
        serve += ["--model", MODEL, "--remote-url", f"redis://127.0.0.1:{tier}"]
        with (
            running("redis-server", redis, self.work / "redis.log", lambda: socket.create_connection(("127.0.0.1", tier)).close()),
            running("vecmemo", serve, self.work / "vecmemo.log", lambda: get(f"{self.url}/ready")),
        ):
            self.metrics = get(f"{self.url}/metrics")
            self.families = list(text_string_to_metric_families(self.metrics))
            self.samples = {}
            for family in self.families:
                for sample in family.samples:
                    self.samples.setdefault(sample.name, []).append(sample.labels)
            self.openapi = json.loads(get(f"{self.url}/openapi.json"))
            yield self

    def inside_requests(self):
        """How many requests each route that is not public has answered, but for those that the proxies and this check ask."""
        counts = {}
        for family in text_string_to_metric_families(get(f"{self.url}/metrics")):
            for sample in family.samples:
                route = sample.labels.get("route")
                if sample.name == "vecmemo_http_requests_total" and route not in PUBLIC | {"unknown", "/metrics", "/ready"}:
                    counts[route] = counts.get(route, 0) + sample.value
        return counts

    def setting(self, name, config=None):
        """A setting as the program understands it."""
        settings = run(self.binary, "config", "--config", config) if config else self.settings
        return tomllib.loads(settings)[name]


@dataclass
class Site:
    """The files that are looked at, a folder of one's own, and the server."""

    deploy: Path
    work: Path
    server: Server

    def text(self, name):
        return (self.deploy / name).read_text()

    def yaml(self, name):
        return [document for document in yaml.safe_load_all(self.text(name)) if document is not None]


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m|min)?", text).groups()
    return int(number) * (60 if unit in ("m", "min") else 1)


def outlasts_the_drain(what, has_s, drain_s, before_s=0):
    least = before_s + drain_s + 5
    must(has_s >= least, f"{what} kills it after {has_s} s: at least {least:.0f} s are needed to finish what was accepted")


def check_layout(site):
    """YAML without doubles and traps, and no variable that the program does not know."""
    files = sorted(path for path in site.deploy.rglob("*") if path.is_file())
    run(TOOLS / "yamllint", "--strict", "-d", YAML_RULES, *(path for path in files if path.suffix == ".yaml"))
    for path in files:
        for variable in set(re.findall(r"\bVECMEMO_[A-Z_]+\b", path.read_text())):
            must(variable in site.server.variables, f"{path.name}: there is no setting {variable}")


def check_systemd(site):
    unit = site.work / "vecmemo.service"
    text = site.text("systemd/vecmemo.service")
    # The program has to exist where the unit says it is.
    unit.write_text(text.replace("/usr/local/bin/vecmemo", str(site.server.binary)))
    said = run("systemd-analyze", "verify", "--man=no", unit)
    must("vecmemo.service" not in said, f"systemd-analyze verify: {said}")
    run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)
    stop = re.search(r"^TimeoutStopSec=(\S+)$", text, re.MULTILINE)
    must(stop, "vecmemo.service: no TimeoutStopSec")
    outlasts_the_drain("vecmemo.service", seconds(stop[1]), site.server.setting("drain_timeout_seconds"))


def check_docker(site):
    dockerfile = site.deploy / "docker/Dockerfile"
    run(TOOLS / "hadolint", "--no-color", "--failure-threshold", "info", dockerfile)
    rust = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["rust-version"]
    must(f"FROM rust:{rust}-" in dockerfile.read_text(), f"Dockerfile: the build needs rust:{rust}, as Cargo.toml says")


def check_compose(site):
    path = site.deploy / "docker/compose.yaml"
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    (compose,) = site.yaml("docker/compose.yaml")
    services = compose["services"]
    for name, service in services.items():
        for other in service.get("depends_on", {}):
            must(other in services, f"compose.yaml: {name} depends on {other}, which there is none of")
        for volume in service.get("volumes", []):
            must(volume.split(":")[0] in compose["volumes"], f"compose.yaml: {name} mounts {volume}, which is no volume")
        must(service.get("read_only"), f"compose.yaml: {name} can write to its root")
        if "stop_grace_period" in service:
            outlasts_the_drain(f"compose.yaml: {name}", seconds(service["stop_grace_period"]), site.server.setting("drain_timeout_seconds"))
        for port in service.get("ports", []):
            must(port.startswith("127.0.0.1:"), f"compose.yaml: {name} is open to others on {port}")


def check_kubernetes(site):
    objects = {}
    for path in sorted((site.deploy / "kubernetes").glob("*.yaml")):
        for document in site.yaml(path.relative_to(site.deploy)):
            try:
                kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
            except kubernetes_validate.ValidationError as error:
                raise Refused(f"{path.name}: {'.'.join(map(str, error.path))}: {error.message}") from None
            objects[document["kind"], document["metadata"]["name"]] = document

    workload = objects["StatefulSet", "vecmemo"]["spec"]
    pod, labels = workload["template"]["spec"], workload["template"]["metadata"]["labels"]
    (container,) = pod["containers"]
    selectors = {
        "StatefulSet": workload["selector"]["matchLabels"],
        "PodDisruptionBudget": objects["PodDisruptionBudget", "vecmemo"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": objects["NetworkPolicy", "vecmemo"]["spec"]["podSelector"]["matchLabels"],
        "Service": objects["Service", "vecmemo"]["spec"]["selector"],
        "Service of the pods": objects["Service", workload["serviceName"]]["spec"]["selector"],
    }
    for what, selector in selectors.items():
        must(selector.items() <= labels.items(), f"kubernetes: the {what} selects {selector}, pods are {labels}")

    config = site.work / "vecmemo.toml"
    config.write_text(objects["ConfigMap", "vecmemo"]["data"]["vecmemo.toml"])
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = site.server.setting("drain_timeout_seconds", config)
    outlasts_the_drain("statefulset.yaml", pod["terminationGracePeriodSeconds"], drain, pause)
    port = int(site.server.setting("listen", config).rsplit(":", 1)[1])
    must(container["ports"][0]["containerPort"] == port, f"statefulset.yaml: the container listens on {port}")
    for probe, wanted in (("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/ready")):
        asked = container[probe]["httpGet"]["path"]
        must(asked == wanted and asked in site.server.openapi["paths"], f"statefulset.yaml: the {probe} asks for {asked}")

    scaled = objects["HorizontalPodAutoscaler", "vecmemo"]["spec"]
    must(("StatefulSet", scaled["scaleTargetRef"]["name"]) in objects, "hpa.yaml: what it scales is not there")
    (rule,) = yaml.safe_load(objects["ConfigMap", "vecmemo-prometheus-adapter"]["data"]["config.yaml"])["rules"]
    for metric in scaled["metrics"]:
        name = metric["pods"]["metric"]["name"]
        must(name == rule["name"]["as"], f"hpa.yaml: prometheus-adapter.yaml makes no metric {name}")
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod="vecmemo-0"')
    known_series(site, {"metricsQuery": query, "seriesQuery": rule["seriesQuery"]})

    (host,) = objects["Ingress", "vecmemo"]["spec"]["rules"]
    passed = {path["path"] for path in host["http"]["paths"]}
    must(passed == PUBLIC, f"ingress.yaml: passed on but not public, or the other way round: {sorted(passed ^ PUBLIC)}")
    must(all(path["pathType"] == "Exact" for path in host["http"]["paths"]), "ingress.yaml: a path that is more than one path")


def certificate(site):
    """A certificate and its key, of nobody."""
    certificate, key = site.work / "proxy.crt", site.work / "proxy.key"
    if not key.exists():
        name = ["-subj", "/CN=vecmemo.example.org", "-days", "2"]
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *name, "-out", certificate, "-keyout", key)
        (site.work / "proxy.pem").write_text(certificate.read_text() + key.read_text())
    return certificate, key


def replaced(name, text, *pairs):
    for old, new in pairs:
        must(old in text, f"{name}: {old!r} is what this check replaces, and is not there")
        text = text.replace(old, str(new))
    return text


def over_tls(port, method, path, body=None):
    """An answer's status and headers; the path goes out as it is written."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
    try:
        connection.request(method, path, body=body, headers={"content-type": "application/json", "host": "vecmemo.example.org"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{method} {path} through the proxy: {error!r}") from None
    finally:
        connection.close()


def passes_on_what_is_public(site, what, port):
    """Every operation of the service through a started proxy: the public ones arrive, the others do not, however they are written."""
    before, paths = site.server.inside_requests(), site.server.openapi["paths"]
    must(PUBLIC <= set(paths), f"not routes of the service: {sorted(PUBLIC - set(paths))}")
    for path, operations in paths.items():
        for method in (name.upper() for name in operations if name in ("get", "post", "put", "delete")):
            status, headers, _ = over_tls(port, method, re.sub(r"\{\w+\}", "x", path), b"{}" if method in ("POST", "PUT") else None)
            arrived = "x-request-id" in headers
            must(arrived == (path in PUBLIC and (method, path) not in INSIDE), f"{what}: {method} {path} {'is passed on' if arrived else 'does not arrive'} ({status})")
            must(arrived or status == 404, f"{what}: {method} {path} is answered {status}")
    for path in CROOKED:
        for method in ("GET", "DELETE"):
            over_tls(port, method, path)
    after = site.server.inside_requests()
    reached = sorted(route for route in after if after[route] != before[route])
    must(not reached, f"{what}: requests from outside have reached {reached}")
    # Nearly as large as bodies may be, and almost nothing in it.
    body = json.dumps({"inputs": "through a proxy"}).rjust(30 << 20)
    status, _, answer = over_tls(port, "POST", "/embed?details=true", body)
    must(status == 200 and b"fingerprint" in answer, f"{what}: a request of {len(body)} bytes is answered {status}: {answer[:300]}")


def reachable(port):
    return lambda: socket.create_connection(("127.0.0.1", port)).close()


def check_haproxy(site):
    certificate(site)
    plain, tls, inside = free_port(), free_port(), free_port()
    pairs = [("/etc/haproxy/vecmemo.pem", site.work / "proxy.pem"), ("bind :80\n", f"bind 127.0.0.1:{plain}\n"), ("bind :443 ", f"bind 127.0.0.1:{tls} ")]
    pairs += [("127.0.0.1:8405", f"127.0.0.1:{inside}")]
    pairs += [(f"vecmemo-{number} vecmemo-{number}:8080", f"vecmemo-{number} 127.0.0.1:{site.server.port}") for number in (1, 2)]
    config = site.work / "haproxy.cfg"
    config.write_text(replaced("haproxy.cfg", site.text("haproxy/haproxy.cfg"), *pairs))
    run("haproxy", "-c", "-f", config)
    with running("haproxy", ["haproxy", "-db", "-f", config], site.work / "haproxy.log", reachable(tls)):
        passes_on_what_is_public(site, "haproxy.cfg", tls)


def check_nginx(site):
    crt, key = certificate(site)
    plain, tls = free_port(), free_port()
    pairs = [("/etc/nginx/vecmemo.crt", crt), ("/etc/nginx/vecmemo.key", key), ("listen 80;", f"listen 127.0.0.1:{plain};"), ("listen 443 ", f"listen 127.0.0.1:{tls} ")]
    pairs += [(f"10.0.0.1{number}:8080", f"127.0.0.1:{site.server.port}") for number in (1, 2)]
    (site.work / "vecmemo.conf").write_text(replaced("vecmemo.conf", site.text("nginx/vecmemo.conf"), *pairs))
    folders = "".join(f"{kind}_temp_path {site.work}/nginx-{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.getuid() == 0 else ""
    config = site.work / "nginx.conf"
    config.write_text(
        f"{user}daemon off;\npid {site.work}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{folders}include {site.work}/vecmemo.conf;\n}}\n"
    )
    run("nginx", "-t", "-e", "stderr", "-c", config)
    with running("nginx", ["nginx", "-e", "stderr", "-c", config], site.work / "nginx.log", reachable(tls)):
        passes_on_what_is_public(site, "vecmemo.conf", tls)


def selectors(expression):
    """The selectors of an expression: a metric's name and what is asked of its labels."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
            child = getattr(node, name, None)
            if child is not None and not isinstance(child, (str, int, float)):
                visit(child)
        for argument in getattr(node, "args", None) or []:
            visit(argument)

    try:
        visit(promql_parser.parse(expression))
    except ValueError as error:
        raise Refused(f"{expression}: {error}") from None
    return found


def meets(labels, matcher):
    value = labels.get(matcher.name, "")
    match matcher.op:
        case promql_parser.MatchOp.Equal:
            return value == matcher.value
        case promql_parser.MatchOp.NotEqual:
            return value != matcher.value
        case promql_parser.MatchOp.Re:
            return re.fullmatch(matcher.value, value) is not None
        case promql_parser.MatchOp.NotRe:
            return re.fullmatch(matcher.value, value) is None
    raise AssertionError(matcher.op)


def known_series(site, expressions, recorded=()):
    """Every selector finds a series of the started server, and every value that is listed in one is there by itself."""
    for where, expression in expressions.items():
        for selector in selectors(expression):
            if selector.name in OF_PROMETHEUS or selector.name in recorded:
                continue
            series = site.server.samples.get(selector.name)
            must(series, f"{where}: /metrics has no series {selector.name}")
            matchers = [matcher for matcher in selector.matchers.matchers if matcher.name not in LABELS_OF_SCRAPES]
            must(any(all(meets(labels, matcher) for matcher in matchers) for labels in series), f"{where}: no series is {selector}")
            for matcher in matchers:
                for value in matcher.value.split("|"):
                    must(any(labels.get(matcher.name) == value for labels in series), f"{where}: {selector.name} has no {matcher.name}={value!r}")


def check_alerts(site):
    rules, tests = site.deploy / "prometheus/alerts.yaml", site.deploy / "prometheus/alerts_test.yaml"
    ((groups,), (tested,)) = (site.yaml("prometheus/alerts.yaml"), site.yaml("prometheus/alerts_test.yaml"))
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", rules)
    all_rules = [rule for group in groups["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in all_rules if "record" in rule}
    known_series(site, {rule.get("alert", rule.get("record")): rule["expr"] for rule in all_rules}, recorded)
    history = {f"{test['name']} ({number})": series["series"] for test in tested["tests"] for number, series in enumerate(test["input_series"])}
    known_series(site, history)
    expected = " ".join(sample["labels"] for test in tested["tests"] for case in test["promql_expr_test"] for sample in case["exp_samples"])
    for rule in all_rules:
        if alert := rule.get("alert"):
            must(f'alertname="{alert}"' in expected, f"alerts_test.yaml: no history has {alert} fire")
            must(rule["labels"]["severity"] in ("page", "ticket"), f"{alert}: nobody is told of severity {rule['labels']['severity']}")
            must({"summary", "description"} <= rule["annotations"].keys(), f"{alert}: does not say what it is and what to do")
    run("promtool", "test", "rules", tests)


def check_dashboard(site):
    dashboard = json.loads(site.text("grafana/vecmemo.json"))
    panels = dashboard["panels"]
    must(len({panel["id"] for panel in panels}) == len(panels), "vecmemo.json: two panels have one id")
    places = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        must(place["x"] + place["w"] <= 24 and not cells & places, f"vecmemo.json: the panel {panel['title']!r} lies over another, or outside")
        places |= cells
        must(panel["type"] == "row" or panel["targets"], f"vecmemo.json: the panel {panel['title']!r} asks for nothing")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    expressions = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel.get("targets", [])}
    expressions |= {annotation["name"]: annotation["expr"] for annotation in dashboard["annotations"]["list"]}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"])
            must(selector, f"vecmemo.json: the variable {variable['name']} is not made of label_values")
            expressions[f"${variable['name']}"] = selector[1]
    plain = {}
    for where, expression in expressions.items():
        expression = expression.replace("$__rate_interval", "5m").replace("$__range", "6h")
        for name in re.findall(r"\$(\w+)", expression):
            must(name in variables, f"vecmemo.json: {where}: there is no variable ${name}")
        plain[where] = re.sub(r"\$\w+", ".*", expression)
    rules = [{"record": f"dashboard:{number}", "expr": expression} for number, expression in enumerate(plain.values())]
    written = site.work / "dashboard.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run("promtool", "check", "rules", "--lint=none", written)
    known_series(site, plain)


def check_metrics(site):
    """Names and types are as Prometheus' conventions want them, and each is explained."""
    try:
        families = list(text_string_to_metric_families(site.server.metrics))
    except ValueError as error:
        raise Refused(f"/metrics is not OpenMetrics: {error}") from None
    for family in families:
        must(family.name.startswith("vecmemo_"), f"/metrics: {family.name} does not say whose it is")
        must(family.documentation, f"/metrics: {family.name} is not explained")
    # promtool reads the older text format, where a counter's family has the name of its samples.
    counters = {family.name for family in families if family.type == "counter"}
    older = re.sub(
        r"^# (HELP|TYPE) (\S+)", lambda line: f"{line[0]}_total" if line[2] in counters else line[0], site.server.metrics, flags=re.MULTILINE
    )
    said = run("promtool", "check", "metrics", stdin=older)
    must(not said.strip(), f"promtool check metrics: {said}")


CHECKS = {
    "layout": check_layout,
    "systemd": check_systemd,
    "docker": check_docker,
    "compose": check_compose,
    "kubernetes": check_kubernetes,
    "haproxy": check_haproxy,
    "nginx": check_nginx,
    "alerts": check_alerts,
    "dashboard": check_dashboard,
    "metrics": check_metrics,
}

# Check, file, what stands there, what is put in its place. /metrics is a file here too.
BREAKAGES = (
    ("layout", "kubernetes/pdb.yaml", "  maxUnavailable: 1\n", "  maxUnavailable: 1\n  maxUnavailable: 2\n"),
    ("layout", "docker/Dockerfile", "VECMEMO_DATA_DIR", "VECMEMO_DATA_FOLDER"),
    ("systemd", "systemd/vecmemo.service", "ProtectSystem=", "ProtectSytem="),
    ("systemd", "systemd/vecmemo.service", "DynamicUser=yes", "User=root"),
    ("systemd", "systemd/vecmemo.service", "TimeoutStopSec=45", "TimeoutStopSec=20"),
    ("docker", "docker/Dockerfile", "USER 65532:65532", "USER root"),
    ("docker", "docker/Dockerfile", "FROM rust:1.95-bookworm", "FROM rust:latest"),
    ("docker", "docker/Dockerfile", "ENTRYPOINT [", "ENTRYPOINTS ["),
    ("compose", "docker/compose.yaml", "  restart: unless-stopped", "  restarts: unless-stopped"),
    ("compose", "docker/compose.yaml", "      valkey-3: {condition", "      valkey-7: {condition"),
    ("compose", "docker/compose.yaml", "stop_grace_period: 45s", "stop_grace_period: 10s"),
    ("compose", "docker/compose.yaml", '"127.0.0.1:8081:8080"', '"8081:8080"'),
    ("kubernetes", "kubernetes/pdb.yaml", "maxUnavailable", "maxUnavailabe"),
    ("kubernetes", "kubernetes/pdb.yaml", "matchLabels: {app.kubernetes.io/name: vecmemo}", "matchLabels: {app: vecmemo}"),
    ("kubernetes", "kubernetes/statefulset.yaml", "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 30"),
    ("kubernetes", "kubernetes/statefulset.yaml", "path: /ready", "path: /health"),
    ("kubernetes", "kubernetes/configmap.yaml", "drain_timeout_seconds", "drain_seconds"),
    ("kubernetes", "kubernetes/hpa.yaml", "metric: {name: vecmemo_queue_texts}", "metric: {name: vecmemo_queue_text}"),
    ("kubernetes", "kubernetes/prometheus-adapter.yaml", "avg_over_time(vecmemo_queue_texts", "avg_over_time(vecmemo_queue_text"),
    ("kubernetes", "kubernetes/ingress.yaml", "path: /info,", "path: /stats,"),
    ("haproxy", "haproxy/haproxy.cfg", "balance leastconn", "balance lestconn"),
    ("haproxy", "haproxy/haproxy.cfg", " /info /health ", " /info /invalidate /health "),
    ("haproxy", "haproxy/haproxy.cfg", "acl public path /", "acl public path_beg /"),
    ("haproxy", "haproxy/haproxy.cfg", "deny_status 404 if { path / } METH_GET", "deny_status 404 if { path /x } METH_GET"),
    ("nginx", "nginx/vecmemo.conf", "least_conn;", "least_con;"),
    ("nginx", "nginx/vecmemo.conf", '"GET /"  yes;', '"GET /x" yes;'),
    ("nginx", "nginx/vecmemo.conf", "    /info          /info;\n", "    /info          /info;\n    /stats         /stats;\n"),
    ("nginx", "nginx/vecmemo.conf", "http://vecmemo$vecmemo_path$is_args$args", "http://vecmemo"),
    ("alerts", "prometheus/alerts.yaml", "vecmemo_remote_ready == 0", "vecmemo_remote_redy == 0"),
    ("alerts", "prometheus/alerts.yaml", 'status="computed"', 'status="computd"'),
    ("alerts", "prometheus/alerts.yaml", 'lane=~"query|ingest"', 'lane=~"query|ingst"'),
    ("alerts", "prometheus/alerts.yaml", "vecmemo_store_degraded == 1", "vecmemo_store_degraded == 2"),
    ("alerts", "prometheus/alerts.yaml", "expr: vecmemo_cache_enabled == 0", "expr: vecmemo_cache_enabled = 0"),
    ("alerts", "prometheus/alerts_test.yaml", 'alertname="VecmemoCacheOff"', 'alertname="VecmemoDown"'),
    ("dashboard", "grafana/vecmemo.json", "vecmemo_tokens_saved_total", "vecmemo_tokens_spared_total"),
    ("dashboard", "grafana/vecmemo.json", "sum by (lane) (", "sum by (lane) "),
    ("dashboard", "grafana/vecmemo.json", 'job=~\\"$job\\"', 'job=~\\"$jobs\\"'),
    ("dashboard", "grafana/vecmemo.json", '"id": 3,', '"id": 2,'),
    ("metrics", "/metrics", "# HELP vecmemo_items ", "# HELP vecmemo_things "),
    ("metrics", "/metrics", "vecmemo_in_flight", "vecmemo_inFlight"),
)


def broken(site, name, old, new):
    """A copy of everything with one place changed."""
    folder = Path(tempfile.mkdtemp(dir=site.work))
    copy = Site(folder / "deploy", folder, site.server)
    shutil.copytree(site.deploy, copy.deploy)
    if name == "/metrics":
        copy.server = Server.__new__(Server)
        copy.server.__dict__ = site.server.__dict__ | {"metrics": replaced(name, site.server.metrics, (old, new))}
    else:
        (copy.deploy / name).write_text(replaced(name, site.text(name), (old, new)))
    return copy


def self_test(site, names):
    """How many broken copies were let through."""
    let_through = 0
    for check, name, old, new in BREAKAGES:
        if check not in names:
            continue
        copy = broken(site, name, old, new)
        try:
            CHECKS[check](copy)
        except Refused as refused:
            print(f"refused   {check}: {name}, {new.strip().splitlines()[-1]!r}: {str(refused).strip().splitlines()[-1][:110]}")
        else:
            let_through += 1
            print(f"LET BY    {check}: {name} with {new!r} in place of {old!r}")
        shutil.rmtree(copy.work)
    return let_through


def main():
    parser = argparse.ArgumentParser(prog="scripts/check-deploy", description="Checks every file of deploy/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these checks: {', '.join(CHECKS)}")
    parser.add_argument("--self-test", action="store_true", help="also check that broken files are refused")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - CHECKS.keys():
        parser.error(f"there is no check {', '.join(sorted(unknown))}: there are {', '.join(CHECKS)}")
    names = arguments.names or list(CHECKS)
    binary = Path(os.environ.get("VECMEMO_BIN", ROOT / "target/debug/vecmemo")).resolve()
    if not os.access(binary, os.X_OK):
        parser.error(f"{binary} is not there: build it (cargo build), or name another in VECMEMO_BIN")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="check-deploy-") as folder:
        try:
            with Server(binary, Path(folder)).serving() as server:
                site = Site(ROOT / "deploy", Path(folder), server)
                for name in names:
                    try:
                        CHECKS[name](site)
                        print(f"ok        {name}", flush=True)
                    except Refused as refused:
                        failed += 1
                        print(f"FAILED    {name}: {refused}", flush=True)
                if arguments.self_test and not failed:
                    failed = self_test(site, names)
        except Refused as refused:
            failed += 1
            print(f"FAILED    {refused}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
