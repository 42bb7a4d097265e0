// A device's push client, as somebody writes it who has npm's coap and push's documentation.
//
//     NODE_PATH=... node npm_device.js ADDRESS PORT
//
// The same lines of JSON as aiocoap_device.py: one socket for everything, orders on stdin, what happens
// on stdout. Bodies are texts, as this client has no CBOR: it asks for them by Accept 0, and shows the
// payload of the gateway's own requests in hexadecimal digits.

'use strict'

const coap = require('coap')
const dgram = require('node:dgram')
const readline = require('node:readline')

const [address, port] = process.argv.slice(2)
const ECHO = '252'

function say(what, fields) {
    console.log(JSON.stringify({ [what]: fields }))
}

// Lines of key=value, if that is what it is.
function body(payload) {
    const pairs = payload.toString().split('\n').filter((line) => line.includes('='))
    return Object.fromEntries(pairs.map((line) => line.split(/=(.*)/s).slice(0, 2)))
}

function option(message, name) {
    return message.options.filter((option) => option.name === name).map((option) => option.value)
}

function ask(agent, order, echo) {
    return new Promise((resolve, reject) => {
        const uri = new URL(order.uri)
        const request = coap.request({
            agent,
            hostname: uri.hostname,
            port: uri.port || 5683,
            method: order.method,
            pathname: uri.pathname,
            query: (order.query ?? []).join('&'),
        })
        request.setOption('Accept', 'text/plain')
        if (echo !== undefined) {
            request.setOption(ECHO, echo)
        }
        request.on('error', reject)
        request.on('response', (answer) => {
            const [challenge] = option(answer, ECHO)
            if (answer.code === '4.01' && challenge !== undefined && echo === undefined) {
                resolve(ask(agent, order, challenge))
                return
            }
            say('answer', {
                code: answer.code,
                location: option(answer, 'Location-Path').map(String),
                max_age_s: answer.headers['Max-Age'],
                body: answer.code.startsWith('2') ? body(answer.payload) : answer.payload.toString(),
                challenged: echo !== undefined,
            })
            resolve()
        })
        request.end()
    })
}

const socket = dgram.createSocket('udp4')
socket.bind(Number(port), address, async () => {
    const server = coap.createServer((request, response) => {
        say('asked', {
            method: request.method,
            path: request.url.split('/').filter(Boolean),
            body: request.payload.toString('hex'),
            from: `${request.rsinfo.address}:${request.rsinfo.port}`,
        })
        response.code = request.method === 'DELETE' ? '2.02' : '2.04'
        response.end()
    })
    server.listen(socket)
    const agent = new coap.Agent({ socket })
    say('ready', {})
    for await (const line of readline.createInterface({ input: process.stdin })) {
        await ask(agent, JSON.parse(line))
    }
    process.exit(0)
})
