-- wrk: POST the JSON of a file again and again (mode "same"), or with a number in place of @@ (mode "unique").
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
  if args[1] == "unique" then
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
