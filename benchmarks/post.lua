-- wrk: POST the JSON of a file again and again (mode "same"), or with a number in place of @@ (a new one
-- each time in mode "unique", 1 to N in turn in mode "turn").
local threads, number, template = 0, 0, nil

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

function init(args)
  local file = assert(io.open(args[2], "rb"))
  local body = file:read("*a")
  file:close()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  if args[1] == "turn" then
    local requests = {}
    for at = 1, tonumber(args[3]) do
      local text = body:gsub("@@", at)
      requests[at] = wrk.format(nil, nil, nil, text)
    end
    request = function()
      number = number % #requests + 1
      return requests[number]
    end
  elseif args[1] == "unique" then
    template = body
    request = function()
      number = number + 1
      local text = template:gsub("@@", args[3] .. "-" .. id .. "-" .. number)
      return wrk.format(nil, nil, nil, text)
    end
  else
    wrk.body = body
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('RESULT {"requests": %d, "seconds": %f, "p50": %f, "p90": %f, "p99": %f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
