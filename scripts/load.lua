-- The requests of one row of scripts/load, for wrk. Settings come as VECMEMO_LOAD_* variables:
--   TEXTS   a file of JSON string literals, one a line: the texts that are in the cache
--   KIND    hits | misses | mix (every tenth text is new)
--   BATCH   texts a request
--   FORMAT  json | base64 | f16
--   MODEL   the model's name, for the OpenAI dialect
--   RUN     a string no other run has: what makes a text new
-- done() prints one line that starts with ROW: requests a second, texts a second, p50, p99, p99.9 in ms, errors.

local function setting(name)
  return (assert(os.getenv("VECMEMO_LOAD_" .. name), "VECMEMO_LOAD_" .. name .. " is not set"))
end

local kind, batch, format = setting("KIND"), tonumber(setting("BATCH")), setting("FORMAT")
local prefixes = {
  json = { path = "/embed", accept = "application/json", before = '{"inputs":[', after = "]}" },
  f16 = { path = "/embed", accept = "application/octet-stream", before = '{"inputs":[', after = "]}" },
  base64 = { path = "/v1/embeddings", accept = "application/json",
    before = '{"model":"' .. setting("MODEL") .. '","encoding_format":"base64","input":[', after = "]}" },
}
local shape = assert(prefixes[format], "no such format")
local headers = { ["Content-Type"] = "application/json", ["Accept"] = shape.accept }

local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("thread_number", threads)
end

local texts, ready, sent = {}, {}, 0

local function whole(list)
  return wrk.format("POST", shape.path, headers, shape.before .. table.concat(list, ",") .. shape.after)
end

function init()
  for line in io.lines(setting("TEXTS")) do texts[#texts + 1] = line end
  sent = thread_number * 7919 -- threads begin at different texts
  if kind == "hits" then -- ready-made requests: the load must not be what is measured
    for first = 1, #texts - batch + 1, batch do
      local list = {}
      for index = first, first + batch - 1 do list[#list + 1] = texts[index] end
      ready[#ready + 1] = whole(list)
    end
  end
end

local run = setting("RUN")
function request()
  if kind == "hits" then
    sent = sent + 1
    return ready[sent % #ready + 1]
  end
  local list = {}
  for index = 1, batch do
    sent = sent + 1
    local text = texts[sent % #texts + 1]
    if kind == "misses" or sent % 10 == 0 then
      text = '"' .. run .. " " .. thread_number .. " " .. sent .. " " .. text:sub(2)
    end
    list[index] = text
  end
  return whole(list)
end

function done(summary, latency)
  local seconds = summary.duration / 1e6
  local errors = summary.errors
  io.write(string.format("ROW %.0f %.0f %.3f %.3f %.3f %d\n",
    summary.requests / seconds, summary.requests * batch / seconds,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
